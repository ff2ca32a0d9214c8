"""Which unlabelled images get which pseudo-labels: pure functions of a probability matrix.

Rows are unlabelled images, columns are the classes that a pseudo-label may name (all of them, in TRZSL the unseen
ones). Nothing here depends on the order of the images, except `published_leader_board`, which reproduces a published
one that does. Equal confidences are won by the image that stands first.

Legend: U unlabelled images, C candidate classes, M selected (image, class) pairs, F images that look for a class.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Places = int | Indices
"""Images that a class may keep: one number for all, or int64 [C] where the class prior is known."""
_ROWS_PER_CHUNK = 4096
_COLUMNS_PER_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The selected pairs, ordered by class and by falling confidence, and the count of all other images."""

    row_M: Indices
    class_M: Indices
    waiting: int = 0
    """Images with candidates for which no class had room."""
    dropped: int = 0
    """Images without candidates."""


def restrict_probability(probability_UC: Probabilities, candidate_classes: Indices) -> Probabilities:
    """The columns of the candidate classes, renormalised; the softmax over these classes alone."""
    kept_UC = probability_UC[:, candidate_classes]
    sum_U1 = kept_UC.sum(axis=1, keepdims=True)
    np.divide(kept_UC, sum_U1, out=kept_UC, where=sum_U1 > 0)  # in place: there may be gigabytes of it
    # An image so certainly of another class that all candidates underflow to 0 says nothing about them.
    kept_UC[sum_U1[:, 0] <= 0] = 1 / len(candidate_classes)
    return kept_UC


def growing_count(round_: int, n_rounds: int, n_unlabelled: int, n_classes: int) -> int:
    """Images per class in a round of GRIP and CPL: K_n = n |U| / (rounds C), rounded down, at least 1."""
    return max(1, round_ * n_unlabelled // (n_rounds * n_classes))


def top_k_per_class(probability_UC: Probabilities, k: Places) -> Selection:
    """The `k` images of highest probability of each class (FPL, as GRIP's paper words it), or so many for each.

    Every class gets `k` images, whether or not it is their most probable one, and an image may serve several classes.
    UPL instead ranks the images that a class wins; a class that wins none would then stay without any.
    """
    n_unlabelled, n_classes = probability_UC.shape
    places_C = _places(k, n_classes)
    best = [_ranked(np.arange(n_unlabelled), probability_UC[:, c])[: places_C[c]] for c in range(n_classes)]
    selection = _selection(best)
    return Selection(row_M=selection.row_M, class_M=selection.class_M, waiting=n_unlabelled - _distinct(selection))


def leader_board(probability_UC: Probabilities, k: Places) -> Selection:
    """GRIP's leader boards of size `k`, the clean variant.

    An image is offered to its classes in falling probability and stays with the first one that has room or whose true
    minimum it beats; an image that is beaten off a board goes on with its next class. The outcome (a stable matching)
    does not depend on the order in which images arrive, and an image sits on one board at most.
    """
    return _deferred_acceptance(probability_UC, np.ones(probability_UC.shape, np.bool_), k)


def published_leader_board(probability_UC: Probabilities, k: Places) -> Selection:
    """GRIP's leader boards of size `k` as its public code has them, whose result depends on the order of the images.

    An image enters the board of its top class if that is not full or its *last* entry is worse. Otherwise it is offered
    to every other class by the same rule, without a stop: it may sit on several boards under different labels. An image
    that is pushed off a board is not offered again. Boards are sorted from their first replacement on.
    """
    n_unlabelled, n_classes = probability_UC.shape
    places_C = _places(k, n_classes)
    board: list[list[tuple[float, int]]] = [[] for _ in range(n_classes)]  # (-probability, -row): best first
    is_sorted = [False] * n_classes
    # What an image has to beat: nothing while a board has room, too much where a board has no place at all.
    last_C = np.where(places_C > 0, -np.inf, np.inf).astype(np.float32)

    def enter(row: int, c: int) -> None:
        entry = (-float(probability_UC[row, c]), -row)
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

    for row, top in enumerate(probability_UC.argmax(axis=1)):
        beaten_C = last_C < probability_UC[row]
        for c in (top,) if beaten_C[top] else np.flatnonzero(beaten_C):
            enter(row, int(c))
    selection = _selection([np.array([-row for _, row in sorted(entries)], np.int64) for entries in board])
    return Selection(row_M=selection.row_M, class_M=selection.class_M, waiting=n_unlabelled - _distinct(selection))


def cpl_candidates(probability_UC: Probabilities, alpha: float, beta: float | npt.NDArray[np.float64]) -> Mask:
    """CPL's candidate sets [U, C]: intra-image and inter-image rule together.

    Intra: with tau the `alpha` quantile of the rows' maxima, a row's classes in falling probability while their running
    sum is at most tau, plus the one that makes it exceed tau. Inter: the images at or above the `beta` quantile of a
    class's column; `beta` may differ from class to class.
    """
    tau = float(np.quantile(probability_UC.max(axis=1).astype(np.float64), alpha))
    candidate_UC = np.empty(probability_UC.shape, np.bool_)
    for start in range(0, len(probability_UC), _ROWS_PER_CHUNK):
        chunk_UC = probability_UC[start : start + _ROWS_PER_CHUNK].astype(np.float64)
        order_UC = np.argsort(-chunk_UC, axis=1, kind="stable")
        sorted_UC = np.take_along_axis(chunk_UC, order_UC, axis=1)
        # A class is taken if what stands before it has not exceeded tau yet; that includes the one that exceeds it.
        before_UC = np.cumsum(sorted_UC, axis=1)[:, :-1]
        taken_UC = np.concatenate([np.ones((len(chunk_UC), 1), np.bool_), before_UC <= tau], axis=1)
        np.put_along_axis(candidate_UC[start : start + _ROWS_PER_CHUNK], order_UC, taken_UC, axis=1)
    for first in range(0, probability_UC.shape[1], _COLUMNS_PER_CHUNK):
        columns = slice(first, first + _COLUMNS_PER_CHUNK)
        column_UC = probability_UC[:, columns].astype(np.float64)
        if np.ndim(beta):
            quantiles = [np.quantile(one_U, q) for one_U, q in zip(column_UC.T, np.asarray(beta)[columns], strict=True)]
            candidate_UC[:, columns] &= column_UC >= np.array(quantiles)
        else:
            candidate_UC[:, columns] &= column_UC >= np.quantile(column_UC, beta, axis=0)
    return candidate_UC


def cpl_select(probability_UC: Probabilities, candidate_UC: Mask, k: Places) -> Selection:
    """CPL's selection: each class keeps its `k` most confident images, displaced ones try their next candidate class.

    selected + waiting + dropped = all images.
    """
    return _deferred_acceptance(probability_UC, candidate_UC, k)


def cpl_targets(probability_UC: Probabilities, candidate_UC: Mask, row_M: Indices, *, soft: bool) -> Probabilities:
    """Candidate labels [M, C] of selected images: the masked, renormalised probabilities if `soft`, else 0/1."""
    hard_MC: Probabilities = candidate_UC[row_M].astype(np.float32)
    if not soft:
        return hard_MC
    masked_MC = probability_UC[row_M] * hard_MC
    sum_M1 = masked_MC.sum(axis=1, keepdims=True)
    soft_MC: Probabilities = hard_MC / hard_MC.sum(axis=1, keepdims=True)  # stays where all candidates underflow to 0
    np.divide(masked_MC, sum_M1, out=soft_MC, where=sum_M1 > 0)
    return soft_MC


def _deferred_acceptance(probability_UC: Probabilities, candidate_UC: Mask, k: Places) -> Selection:
    """Images ask for their candidate classes in falling probability, classes keep the `k` best that ever asked.

    Gale and Shapley's algorithm, all images that seek a class at once; the outcome does not depend on who asks first.
    """
    wish_W, next_U, stop_U = _wish_lists(probability_UC, candidate_UC)
    board = [np.empty(0, np.int64) for _ in range(probability_UC.shape[1])]
    places_C = _places(k, probability_UC.shape[1])
    seeking_F = np.flatnonzero(next_U < stop_U)
    n_with_candidates = len(seeking_F)
    while len(seeking_F):
        class_F = wish_W[next_U[seeking_F]]
        next_U[seeking_F] += 1
        order_F = np.argsort(class_F, kind="stable")
        first_F = np.flatnonzero(np.diff(class_F[order_F], prepend=-1))
        displaced = []
        for group in np.split(seeking_F[order_F], first_F[1:]):
            c = int(wish_W[next_U[group[0]] - 1])
            contest = np.concatenate([board[c], group])
            room = int(places_C[c])
            if len(contest) > room:
                contest = _ranked(contest, probability_UC[contest, c])
                displaced.append(contest[room:])
            board[c] = contest[:room]
        seeking_F = np.concatenate([np.empty(0, np.int64), *displaced])
        seeking_F = seeking_F[next_U[seeking_F] < stop_U[seeking_F]]
    selection = _selection([_ranked(rows, probability_UC[rows, c]) for c, rows in enumerate(board)])
    n_selected = len(selection.row_M)
    return Selection(
        row_M=selection.row_M,
        class_M=selection.class_M,
        waiting=n_with_candidates - n_selected,
        dropped=len(probability_UC) - n_with_candidates,
    )


def _places(k: Places, n_classes: int) -> Indices:
    """The places of every class's board, int64 [C]."""
    return np.full(n_classes, k, np.int64) if isinstance(k, int) else k


def _wish_lists(probability_UC: Probabilities, candidate_UC: Mask) -> tuple[npt.NDArray[np.int32], Indices, Indices]:
    """The images' candidate classes in falling probability, end to end, and where each list starts and stops."""
    n_classes = probability_UC.shape[1]
    wishes = []
    for start in range(0, len(probability_UC), _ROWS_PER_CHUNK):
        chosen_UC = candidate_UC[start : start + _ROWS_PER_CHUNK]
        key_UC = np.where(chosen_UC, -probability_UC[start : start + _ROWS_PER_CHUNK], np.float32(1))
        order_UC = np.argsort(key_UC, axis=1, kind="stable").astype(np.int32)
        wishes.append(order_UC[np.arange(n_classes) < chosen_UC.sum(axis=1, keepdims=True)])
    stop_U = np.cumsum(candidate_UC.sum(axis=1), dtype=np.int64)
    start_U = np.concatenate([np.zeros(1, np.int64), stop_U[:-1]])[: len(stop_U)]
    return np.concatenate([np.empty(0, np.int32), *wishes]), start_U, stop_U


def _ranked(rows: Indices, confidence: Probabilities) -> Indices:
    """Rows by falling confidence; of equals the one that stands first."""
    order: Indices = np.lexsort((rows, -confidence))
    ranked: Indices = rows[order]
    return ranked


def _selection(rows_of_class: Sequence[Indices]) -> Selection:
    row_M = np.concatenate([np.empty(0, np.int64), *rows_of_class])
    return Selection(row_M=row_M, class_M=np.repeat(np.arange(len(rows_of_class)), [len(r) for r in rows_of_class]))


def _distinct(selection: Selection) -> int:
    return len(np.unique(selection.row_M))
