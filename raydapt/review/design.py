"""Which images a person is asked about: a stratified sample with known probabilities, which may end at any length.

The design knows predictions and no label. Images are put into strata by how unsure the answers are (`difficulty`), cut
so that every stratum is given equally many questions: Neyman's allocation (Neyman 1934, section V) under the
predicted variances. Unsure images, and those on which runs differ, are therefore asked for more often than sure ones,
at most 1.9 times as often, since confidences are not trusted to know of all errors.

Within a stratum the images stand sorted by predicted class and confidence, and are visited by steps of the golden
ratio from a random start, so that every beginning of the order is spread over classes and confidences. A shift of the
start by one place shifts the whole order, so each image of a stratum is equally likely at each place: the mean of
those answered is unbiased for the mean of the stratum.

Legend: N images, R answerers, H strata, A images that may be asked about, in the order of asking.
"""

from dataclasses import dataclass

import numpy as np

from raydapt.review.population import Floats, Indices, Population, consensus, softened

STRATA = 5
MOST = 2000
"""Questions that are put into order: more than anyone answers."""
_STEP = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Design:
    """The sample, before any answer.

    Attributes:
        seed: Of the starts and of the turns of the strata.
        stratum_N: int64, the stratum of every image.
        order_A: int64, the images in the order of asking.
    """

    seed: int
    stratum_N: Indices
    order_A: Indices


def difficulty(right_RN: Floats) -> Floats:
    """Deviation expected of an answer's being right, [N]: root mean square over the answerers, at most 0.5.

    An answer that is more likely wrong than right counts as undecided: low confidences are no knowledge of errors.
    """
    soft_RN = np.maximum(softened(right_RN), 0.5)
    deviation: Floats = np.sqrt((soft_RN * (1.0 - soft_RN)).mean(axis=0))
    return deviation


def make_design(population: Population, *, seed: int, strata: int = STRATA, most: int = MOST) -> Design:
    """Draws the design.

    Args:
        population: What was predicted.
        seed: The same seed and predictions give the same design.
        strata: H, at most; fewer where there are fewer kinds of images.
        most: A, at most.
    """
    generator = np.random.default_rng(seed)
    class_N, right_RN = consensus(population)
    stratum_N = _strata(difficulty(right_RN), strata)
    own_N = population.confidence_RN.mean(axis=0)
    visits = [
        _visits(np.flatnonzero(stratum_N == h), class_N, own_N, generator) for h in range(int(stratum_N.max()) + 1)
    ]
    order: list[int] = []
    for turn in range(max(len(visit) for visit in visits)):
        for h in generator.permutation(len(visits)):
            if turn < len(visits[h]):
                order.append(int(visits[h][turn]))
        if len(order) >= most:
            break
    return Design(seed=seed, stratum_N=stratum_N, order_A=np.array(order[:most], dtype=np.int64))


def simple_design(n_images: int, *, seed: int, most: int = MOST) -> Design:
    """Simple random sampling: one stratum, any order. What the stratified design is measured against."""
    order_N = np.random.default_rng(seed).permutation(n_images)
    return Design(seed=seed, stratum_N=np.zeros(n_images, dtype=np.int64), order_A=order_N[:most])


def _strata(size_N: Floats, strata: int) -> Indices:
    """Strata of equal total size, from small to large sizes; without empty ones."""
    order_N = np.argsort(size_N, kind="stable")
    share_N = np.cumsum(size_N[order_N]) - size_N[order_N] / 2
    stratum_N = np.empty(len(size_N), dtype=np.int64)
    stratum_N[order_N] = np.minimum(share_N / size_N.sum() * strata, strata - 1).astype(np.int64)
    _, without_gaps_N = np.unique(stratum_N, return_inverse=True)
    return without_gaps_N.astype(np.int64)


def _visits(member_M: Indices, class_N: Indices, confidence_N: Floats, generator: np.random.Generator) -> Indices:
    """The members of a stratum in the order of asking."""
    shuffled_M = generator.permutation(member_M)  # so that equal ones have no order of their own
    sorted_M = shuffled_M[np.lexsort((confidence_N[shuffled_M], class_N[shuffled_M]))]
    size = len(sorted_M)
    # The steps reach every place within a few times as many; what is left out so far follows in a random order.
    place_K = ((generator.random() + _STEP * np.arange(3 * size)) % 1.0 * size).astype(np.int64) % size
    _, first = np.unique(place_K, return_index=True)
    visited_M = sorted_M[place_K[np.sort(first)]]
    left_M = generator.permutation(np.setdiff1d(sorted_M, visited_M))
    return np.concatenate([visited_M, left_M])
