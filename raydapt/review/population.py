"""What several classifiers answered for the same images, and how likely each answer is right before anyone has looked.

Legend: N images, R answerers (zero-shot first, then the runs), C classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
UNSEEN_ERROR = 0.08
"""Share of errors that confidences are taken not to know of: images of no class, sure and wrong answers."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """The images that a review speaks of, each distinct content once.

    Attributes:
        id_N: Content ids.
        names: Of the answerers, R of them.
        classes: Class names, C of them.
        class_RN: int64, the class that each answerer gives.
        confidence_RN: Its probability, 0 to 1.
    """

    id_N: tuple[str, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    class_RN: Indices
    confidence_RN: Floats


def consensus(population: Population) -> tuple[Indices, Floats]:
    """The class int64 [N] to which the answerers together give most, and how likely each answer is right, [R, N].

    The probability of a class is the mean over the answerers of what they give it; an answerer of whom only the best
    class is known spreads the rest evenly over the others. An image on which answerers differ is therefore unsure.
    """
    class_RN = population.class_RN
    right_RN = right_shares(class_RN, population.confidence_RN, len(population.classes))
    best_N = right_RN.argmax(axis=0)
    return class_RN[best_N, np.arange(class_RN.shape[1])], right_RN


def right_shares(class_RN: Indices, confidence_RN: Floats, n_classes: int) -> Floats:
    """What the answerers together give to each answer, [R, N]; see `consensus`."""
    others = max(n_classes - 1, 1)
    return np.stack(
        [
            np.where(class_RN == class_N, confidence_RN, (1.0 - confidence_RN) / others).mean(axis=0)
            for class_N in class_RN
        ]
    )


def softened(right_RN: Floats) -> Floats:
    """Probabilities of being right that leave room for errors of which confidences do not know (`UNSEEN_ERROR`)."""
    softer: Floats = (1.0 - UNSEEN_ERROR) * right_RN
    return softer
