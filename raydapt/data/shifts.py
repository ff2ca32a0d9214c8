"""Variants of a labelled image set as unlabelled sets really are: unequal, incomplete, foreign, few, repeated.

Each variant says which rows are taken and which classes are named. It is drawn with a seed, so that a benchmark repeats
it. Nothing here reads an image.

Legend: N rows of the labelled set, M rows that are taken, C classes of the labelled set, K classes that are named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
OPEN_SHARE = 0.3
"""Share of images that belong to no named class in `open_set`."""
_OPEN_CLASSES = 0.3
"""Share of the classes that such images are drawn from."""
_RARE_SHARES = (0.05, 0.10)
"""Range of the rarer class's share in `two_classes`."""


@dataclass(frozen=True, kw_only=True)
class ShiftedSet:
    """Rows of a labelled set, and the classes that are named for them."""

    row_M: Indices
    """int64 rows of the labelled set, mixed; a row may stand here more than once (`duplicates`)."""
    class_K: Indices
    """int64 classes that are named, in rising order; some may have no image."""
    target_M: Indices
    """int64 position in `class_K` of every row's class; -1 for an image of no named class."""


def as_it_is(label_N: Indices, rng: np.random.Generator) -> ShiftedSet:
    """All rows."""
    return _of(label_N, np.arange(len(label_N)), np.unique(label_N), rng)


def balanced(label_N: Indices, rng: np.random.Generator) -> ShiftedSet:
    """As many rows of every class as the rarest one has."""
    classes = np.unique(label_N)
    fewest = min(int((label_N == c).sum()) for c in classes)
    return _of(label_N, _take(label_N, {int(c): fewest for c in classes}, rng), classes, rng)


def long_tail(label_N: Indices, rng: np.random.Generator, *, ratio: float) -> ShiftedSet:
    """Counts that fall geometrically, the commonest class `ratio` times the rarest; the order is drawn.

    Class k of C keeps n_max ratio^(-k / (C - 1)) rows (Cui et al., CVPR 2019, section 5.1), at least one, with n_max
    the size of the smallest class, so that every shape can be met.
    """
    classes = rng.permutation(np.unique(label_N))
    largest = min(int((label_N == c).sum()) for c in classes)
    steps = max(1, len(classes) - 1)
    count = {int(c): max(1, round(largest * ratio ** (-k / steps))) for k, c in enumerate(classes)}
    return _of(label_N, _take(label_N, count, rng), np.sort(classes), rng)


def present(label_N: Indices, rng: np.random.Generator, *, n_present: int) -> ShiftedSet:
    """All rows of `n_present` drawn classes, while all classes are named."""
    classes = np.unique(label_N)
    kept = rng.choice(classes, min(n_present, len(classes)), replace=False)
    return _of(label_N, np.flatnonzero(np.isin(label_N, kept)), classes, rng)


def half_absent(label_N: Indices, rng: np.random.Generator) -> ShiftedSet:
    """All rows of half of the classes (rounded up), while all are named."""
    return present(label_N, rng, n_present=(len(np.unique(label_N)) + 1) // 2)


def two_classes(label_N: Indices, rng: np.random.Generator) -> ShiftedSet:
    """Two drawn classes, both named and no other; the second has 5 to 10 % of the images, at least two."""
    common, rare = (int(c) for c in rng.choice(np.unique(label_N), 2, replace=False))
    n_common = int((label_N == common).sum())
    share = rng.uniform(*_RARE_SHARES)
    count = {common: n_common, rare: max(2, round(n_common * share / (1 - share)))}
    return _of(label_N, _take(label_N, count, rng), np.sort([common, rare]), rng)


def open_set(label_N: Indices, rng: np.random.Generator, *, share: float = OPEN_SHARE) -> ShiftedSet:
    """A third of the classes loses its names; `share` of the images that remain are theirs."""
    classes = rng.permutation(np.unique(label_N))
    n_open = min(max(1, round(len(classes) * _OPEN_CLASSES)), len(classes) - 1)
    named = np.sort(classes[n_open:])
    known = np.flatnonzero(np.isin(label_N, named))
    foreign = rng.permutation(np.flatnonzero(~np.isin(label_N, named)))
    wanted = round(len(known) * share / (1 - share))
    if wanted > len(foreign):
        known = rng.permutation(known)[: round(len(foreign) * (1 - share) / share)]
    return _of(label_N, np.concatenate([known, foreign[:wanted]]), named, rng)


def few(label_N: Indices, rng: np.random.Generator, *, per_class: int = 5) -> ShiftedSet:
    """`per_class` images of every class, or all of a class that has fewer."""
    classes = np.unique(label_N)
    return _of(label_N, _take(label_N, {int(c): per_class for c in classes}, rng), classes, rng)


def duplicates(label_N: Indices, rng: np.random.Generator, *, share: float = 0.3, times: int = 5) -> ShiftedSet:
    """All rows, `share` of them `times` times."""
    repeated = rng.choice(len(label_N), round(share * len(label_N)), replace=False)
    row_M = np.concatenate([np.arange(len(label_N)), *[repeated] * (times - 1)])
    return _of(label_N, row_M, np.unique(label_N), rng)


def distractors(label_N: Indices, rng: np.random.Generator, *, n_distractors: int = 5) -> ShiftedSet:
    """Names that no image shows stand among the others: `n_distractors`, a third of the classes at most."""
    n_classes = len(np.unique(label_N))
    return present(label_N, rng, n_present=n_classes - min(n_distractors, max(1, n_classes // 3)))


VARIANTS: dict[str, Callable[[Indices, np.random.Generator], ShiftedSet]] = {
    "as it is": as_it_is,
    "balanced": balanced,
    "10:1": lambda label_N, rng: long_tail(label_N, rng, ratio=10),
    "50:1": lambda label_N, rng: long_tail(label_N, rng, ratio=50),
    "half absent": half_absent,
    "5 present": lambda label_N, rng: present(label_N, rng, n_present=5),
    "two classes": two_classes,
    "30 % open set": open_set,
    "5 a class": few,
    "duplicates": duplicates,
    "distractors": distractors,
}
"""Every variant of the benchmark by the name that stands in its tables."""


def shifted(variant: str, label_N: Indices, seed: int) -> ShiftedSet:
    """One draw of a variant.

    Args:
        variant: A key of `VARIANTS`.
        label_N: int64 class of every row.
        seed: Of the draw; the same seed gives the same rows.
    """
    return VARIANTS[variant](label_N, np.random.default_rng([seed, *variant.encode()]))


def _take(label_N: Indices, count: dict[int, int], rng: np.random.Generator) -> Indices:
    """Rows drawn without replacement, so many of each class or all that it has."""
    return np.concatenate([rng.permutation(np.flatnonzero(label_N == c))[:n] for c, n in count.items()])


def _of(label_N: Indices, row_M: Indices, class_K: Indices, rng: np.random.Generator) -> ShiftedSet:
    row_M = rng.permutation(row_M).astype(np.int64)
    label_M = label_N[row_M]
    place_M = np.searchsorted(class_K, label_M).clip(max=len(class_K) - 1)
    target_M = np.where(class_K[place_M] == label_M, place_M, -1)
    return ShiftedSet(row_M=row_M, class_K=class_K.astype(np.int64), target_M=target_M.astype(np.int64))
