"""Which unlabelled images get which pseudo-labels, by their probabilities, which come block by block.

Rows are unlabelled images, columns are the classes that a pseudo-label may name (all of them, in TRZSL the unseen
ones). Nothing here depends on the order of the images, except `published_leader_board`, which reproduces a published
one that does. Equal confidences are won by the image that stands first. What is held beside a block is of the size of
the answer, or of a short list of each image.

Legend: U unlabelled images, B images of a block, C candidate classes, M selected (image, class) pairs, L classes of a
list.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raydapt.methods.prompting.matching import Bars, WishLists, deferred_acceptance, ranked
from raydapt.methods.prompting.probability_blocks import Indices, Probabilities, ProbabilityBlocks, top_classes

Places = int | Indices
"""Images that a class may keep: one number for all, or int64 [C] where the class prior is known."""
_LIST = 16
"""Classes of an image that are listed at a time."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The selected pairs, ordered by class and by falling confidence, and the count of all other images."""

    row_M: Indices
    class_M: Indices
    confidence_M: Probabilities
    """Probability of the class for the image."""
    waiting: int = 0
    """Images with candidates for which no class had room."""
    dropped: int = 0
    """Images without candidates."""

    @classmethod
    def of(
        cls, row_of: Sequence[Indices], confidence_of: Sequence[Probabilities], n_images: int, *, dropped: int = 0
    ) -> Selection:
        """What every class keeps; all others wait, but for those that are dropped."""
        row_M = np.concatenate([np.empty(0, np.int64), *row_of])
        return cls(
            row_M=row_M,
            class_M=np.repeat(np.arange(len(row_of)), [len(rows) for rows in row_of]),
            confidence_M=np.concatenate([np.empty(0, np.float32), *confidence_of]),
            waiting=n_images - dropped - len(np.unique(row_M)),
            dropped=dropped,
        )


def growing_count(round_: int, n_rounds: int, n_unlabelled: int, n_classes: int) -> int:
    """Images per class in a round of GRIP and CPL: K_n = n |U| / (rounds C), rounded down, at least 1."""
    return max(1, round_ * n_unlabelled // (n_rounds * n_classes))


def top_k_per_class(probability_UC: ProbabilityBlocks, k: Places) -> Selection:
    """The `k` images of highest probability of each class (FPL, as GRIP's paper words it), or so many for each.

    Every class gets `k` images, whether or not it is their most probable one, and an image may serve several classes.
    UPL instead ranks the images that a class wins; a class that wins none would then stay without any.
    """
    n_images, n_classes = probability_UC.shape
    places_C = places_of(k, n_classes)
    row_of = [np.empty(0, np.int64) for _ in range(n_classes)]
    confidence_of = [np.empty(0, np.float32) for _ in range(n_classes)]
    bars = Bars.of(places_C, n_images)
    for rows, block_BC in probability_UC:
        block_CB, row_B = np.ascontiguousarray(block_BC.T), np.arange(rows.start, rows.stop)
        for c in np.flatnonzero((block_CB > bars.confidence_C[:, None]).any(axis=1)).tolist():
            beats_B = block_CB[c] > bars.confidence_C[c]  # of equals those that stand before are there already
            found, confidence = ranked(
                np.concatenate([row_of[c], row_B[beats_B]]), np.concatenate([confidence_of[c], block_CB[c, beats_B]])
            )
            row_of[c], confidence_of[c] = found[: places_C[c]], confidence[: places_C[c]]
            if len(found) >= places_C[c]:
                bars.confidence_C[c] = confidence[places_C[c] - 1]
    return Selection.of(row_of, confidence_of, n_images)


def leader_board(probability_UC: ProbabilityBlocks, k: Places) -> Selection:
    """GRIP's leader boards of size `k`, the clean variant.

    An image is offered to its classes in falling probability and stays with the first one that has room or whose true
    minimum it beats; an image that is beaten off a board goes on with its next class. The outcome (a stable matching)
    does not depend on the order in which images arrive, and an image sits on one board at most.
    """
    n_images, n_classes = probability_UC.shape
    n_listed = min(_LIST, n_classes)

    def lists(row_F: Indices, bars: Bars) -> WishLists:
        """The most probable classes of some images that would take them."""
        sizes, classes, confidences = [], [], []
        for rows, block_BC in probability_UC.holding(row_F):
            row_B = row_F[np.searchsorted(row_F, rows.start) : np.searchsorted(row_F, rows.stop)]
            own_BC = block_BC[row_B - rows.start]
            open_BC = bars.beaten(own_BC, row_B[:, None], slice(None))
            class_BL, confidence_BL = top_classes(own_BC, n_listed, open_BC)
            listed_BL = np.take_along_axis(open_BC, class_BL, axis=1)
            sizes.append(listed_BL.sum(axis=1))
            classes.append(class_BL[listed_BL].astype(np.int32))
            confidences.append(confidence_BL[listed_BL])
        return wish_lists(sizes, classes, confidences)

    everyone, bars = np.arange(n_images), Bars.of(places_of(k, n_classes), n_images)
    refill = lists if n_listed < n_classes else None
    return Selection.of(*deferred_acceptance(lists(everyone, bars), places_of(k, n_classes), refill), n_images)


def published_leader_board(probability_UC: ProbabilityBlocks, k: Places) -> Selection:
    """GRIP's leader boards of size `k` as its public code has them, whose result depends on the order of the images.

    An image enters the board of its top class if that is not full or its *last* entry is worse. Otherwise it is offered
    to every other class by the same rule, without a stop: it may sit on several boards under different labels. An image
    that is pushed off a board is not offered again. Boards are sorted from their first replacement on.
    """
    n_images, n_classes = probability_UC.shape
    places_C = places_of(k, n_classes)
    board: list[list[tuple[float, int]]] = [[] for _ in range(n_classes)]  # (-probability, -row): best first
    is_sorted = [False] * n_classes
    # What an image has to beat: nothing while a board has room, too much where a board has no place at all.
    last_C = np.where(places_C > 0, -np.inf, np.inf).astype(np.float32)

    def enter(row: int, c: int, confidence: float) -> None:
        entry = (-confidence, -row)
        if len(board[c]) < places_C[c]:
            board[c].append(entry)
        else:
            if not is_sorted[c]:
                board[c].sort()
                is_sorted[c] = True
            insort(board[c], entry)
            board[c].pop()
        if len(board[c]) == places_C[c]:
            last_C[c] = -board[c][-1][0]

    for rows, block_BC in probability_UC:
        for row, top, probability_C in zip(
            range(rows.start, rows.stop), block_BC.argmax(axis=1), block_BC, strict=True
        ):
            beaten_C = last_C < probability_C
            for c in (top,) if beaten_C[top] else np.flatnonzero(beaten_C):
                enter(row, int(c), float(probability_C[c]))
    best = [sorted(entries) for entries in board]
    row_of = [np.array([-row for _, row in entries], np.int64) for entries in best]
    return Selection.of(row_of, [np.array([-p for p, _ in entries], np.float32) for entries in best], n_images)


def wish_lists(
    sizes: Sequence[Indices], classes: Sequence[npt.NDArray[np.int32]], probabilities: Sequence[Probabilities]
) -> WishLists:
    """The lists of the images of several blocks together."""
    size_U = np.concatenate([np.empty(0, np.int64), *sizes])
    return WishLists(
        start_U=np.cumsum(size_U) - size_U,
        size_U=size_U,
        class_E=np.concatenate([np.empty(0, np.int32), *classes]),
        probability_E=np.concatenate([np.empty(0, np.float32), *probabilities]),
    )


def places_of(k: Places, n_classes: int) -> Indices:
    """The places of every class's board, int64 [C]."""
    return np.full(n_classes, k, np.int64) if isinstance(k, int) else k
