"""Which image goes to which class, where classes have room for some: Gale and Shapley's algorithm on wish lists.

Legend: U unlabelled images, C classes, E entries of all lists together, F images that look for a class, A classes that
are asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raydapt.methods.prompting.probability_blocks import Indices, Probabilities

_IMAGES_AT_ONCE = 1 << 12


@dataclass(frozen=True, kw_only=True)
class WishLists:
    """Of each image some classes in falling probability."""

    start_U: Indices
    """Where an image's list begins among the entries."""
    size_U: Indices
    class_E: npt.NDArray[np.int32]
    probability_E: Probabilities

    def entries(self, row_F: Indices) -> tuple[Indices, Indices]:
        """The entries of some images, one image after the other: whose each is (its place in `row_F`), and where."""
        size_F = self.size_U[row_F]
        owner_E = np.repeat(np.arange(len(row_F)), size_F)
        first_F = np.cumsum(size_F) - size_F
        return owner_E, np.arange(len(owner_E)) + np.repeat(self.start_U[row_F] - first_F, size_F)

    def instead(self, row_F: Indices, others: WishLists) -> WishLists:
        """Other lists in the place of those of some images, in the order of `row_F`."""
        start_U, size_U = self.start_U.copy(), self.size_U.copy()
        start_U[row_F], size_U[row_F] = len(self.class_E) + others.start_U, others.size_U
        return WishLists(
            start_U=start_U,
            size_U=size_U,
            class_E=np.concatenate([self.class_E, others.class_E]),
            probability_E=np.concatenate([self.probability_E, others.probability_E]),
        )


@dataclass(frozen=True, kw_only=True)
class Bars:
    """What an image has to beat: nothing while a board has room, too much where a board has no place at all.

    Of equal confidences the image that stands first wins. Bars only ever rise.
    """

    confidence_C: Probabilities
    row_C: Indices

    @classmethod
    def of(cls, places_C: Indices, n_images: int) -> Bars:
        """Before anybody has asked."""
        confidence_C = np.where(places_C > 0, -np.inf, np.inf).astype(np.float32)
        return cls(confidence_C=confidence_C, row_C=np.full(len(places_C), n_images))

    def beaten(
        self, confidence: Probabilities, row: Indices, class_: npt.NDArray[np.integer] | slice
    ) -> npt.NDArray[np.bool_]:
        """Whether images would get a place; arrays of one shape, or that can be broadcast to one."""
        bar = self.confidence_C[class_]
        beaten: npt.NDArray[np.bool_] = (confidence > bar) | ((confidence == bar) & (row < self.row_C[class_]))
        return beaten


Refill = Callable[[Indices, Bars], WishLists]
"""Further lists of images whose own hold no open class any more, of open classes alone; empty where none is open."""


def deferred_acceptance(
    wishes: WishLists, places_C: Indices, refill: Refill | None = None
) -> tuple[list[Indices], list[Probabilities]]:
    """Images ask for their classes in falling probability, classes keep the best that ever asked.

    All images that seek a class ask at once; the outcome (a stable matching) does not depend on who asks first. As bars
    only rise, an image goes straight to the first class of its list that would still take it.

    Args:
        wishes: Lists, whole ones where nothing refills them.
        places_C: Images that a class may keep.
        refill: Gives new lists to those that have come to the end of theirs.

    Returns:
        The rows that each class keeps, by falling confidence, and these confidences.
    """
    n_images, n_classes = len(wishes.size_U), len(places_C)
    row_of = [np.empty(0, np.int64) for _ in range(n_classes)]
    confidence_of = [np.empty(0, np.float32) for _ in range(n_classes)]
    bars = Bars.of(places_C, n_images)
    seeking_F, ended = np.flatnonzero(wishes.size_U), [np.empty(0, np.int64)]
    while len(seeking_F):
        class_F, confidence_F = _first_open(wishes, seeking_F, bars)
        ended.append(seeking_F[class_F < 0])
        asks_F = np.flatnonzero(class_F >= 0)
        order_F = asks_F[np.argsort(class_F[asks_F], kind="stable")]
        asked_A, first_A = np.unique(class_F[order_F], return_index=True)
        displaced = [np.empty(0, np.int64)]
        for c, group_F in zip(asked_A.tolist(), np.split(order_F, first_A[1:]), strict=bool(len(asked_A))):
            rows, confidence = ranked(
                np.concatenate([row_of[c], seeking_F[group_F]]),
                np.concatenate([confidence_of[c], confidence_F[group_F]]),
            )
            room = int(places_C[c])
            if len(rows) >= room:
                displaced.append(rows[room:])
                bars.row_C[c], bars.confidence_C[c] = rows[room - 1], confidence[room - 1]
            row_of[c], confidence_of[c] = rows[:room], confidence[:room]
        seeking_F = np.concatenate(displaced)
        if not len(seeking_F) and refill is not None:
            row_F, ended = np.sort(np.concatenate(ended)), [np.empty(0, np.int64)]
            wishes = wishes.instead(row_F, refill(row_F, bars)) if len(row_F) else wishes
            seeking_F = row_F[wishes.size_U[row_F] > 0]
    return row_of, confidence_of


def _first_open(wishes: WishLists, seeking_F: Indices, bars: Bars) -> tuple[Indices, Probabilities]:
    """The first class of each list whose board would take the image, -1 where there is none, and its probability."""
    class_F = np.full(len(seeking_F), -1)
    confidence_F = np.zeros(len(seeking_F), np.float32)
    for start in range(0, len(seeking_F), _IMAGES_AT_ONCE):
        row_F = seeking_F[start : start + _IMAGES_AT_ONCE]
        owner_E, entry_E = wishes.entries(row_F)
        class_E, confidence_E = wishes.class_E[entry_E], wishes.probability_E[entry_E]
        open_E = np.flatnonzero(bars.beaten(confidence_E, row_F[owner_E], class_E))
        owner_A, first_A = np.unique(owner_E[open_E], return_index=True)
        class_F[start + owner_A] = class_E[open_E[first_A]]
        confidence_F[start + owner_A] = confidence_E[open_E[first_A]]
    return class_F, confidence_F


def ranked(rows: Indices, confidence: Probabilities) -> tuple[Indices, Probabilities]:
    """Rows by falling confidence, of equals the one that stands first, and the confidences."""
    order = np.lexsort((rows, -confidence))
    return rows[order], confidence[order]
