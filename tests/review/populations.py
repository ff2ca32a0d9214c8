"""Images with answers of two classifiers and the truth, for simulated reviews."""

import numpy as np
from numpy.typing import NDArray

from raydapt.review.estimates import NONE
from raydapt.review.population import Population


def population(
    seed: int, *, n: int = 800, classes: int = 8, strength: float = 4.0, heat: float = 1.0, none: float = 0.02
) -> tuple[Population, NDArray[np.int64]]:
    """Two classifiers that share much of their noise, and the classes of the images, `NONE` for some.

    Args:
        seed: Of everything.
        n: Images.
        classes: Number of classes.
        strength: The larger the more are right; the first classifier has 0.7 of it.
        heat: Confidences are overconfident above 1, and underconfident below.
        none: Share of images of no class.
    """
    generator = np.random.default_rng(seed)
    truth_N = generator.integers(0, classes, n)
    clearness_N = generator.gamma(1.5, 1 / 1.5, n)
    shared_NC = generator.standard_normal((n, classes))
    logits = []
    for own in (0.7 * strength, strength):
        noise_NC = 0.8 * shared_NC + 0.6 * generator.standard_normal((n, classes))
        logits.append(noise_NC + 2 * own * clearness_N[:, None] * np.eye(classes)[truth_N])
    logit_RNC = np.stack(logits) * 1.5 * heat
    probability_RNC = np.exp(logit_RNC - logit_RNC.max(axis=2, keepdims=True))
    probability_RNC /= probability_RNC.sum(axis=2, keepdims=True)
    truth_N = np.where(generator.random(n) < none, NONE, truth_N)
    names = tuple(f"class {c}" for c in range(classes))
    people = Population(
        id_N=tuple(f"{i:016x}" for i in range(n)),
        names=("zero-shot", "run"),
        classes=names,
        class_RN=probability_RNC.argmax(axis=2).astype(np.int64),
        confidence_RN=probability_RNC.max(axis=2),
    )
    return people, truth_N.astype(np.int64)
