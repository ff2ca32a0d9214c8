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
Targets = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Places = int | Indices
"""Images that a class may keep: one number for all, or int64 [C] where the class prior is known."""
_CELLS_PER_CHUNK = 64 * 1024
"""What is worked on at a time, rows or columns, which stays small beside the matrix."""
_COLUMNS_AT_ONCE = 16
"""At least so many columns, since a line of a processor's cache holds as many numbers of a row."""


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
    """The columns of the candidate classes, renormalised; the softmax over these classes alone.

    Where every class is a candidate nothing is restricted, and the matrix itself comes back.
    """
    if np.array_equal(candidate_classes, np.arange(probability_UC.shape[1])):
        return probability_UC
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
    return _deferred_acceptance(probability_UC, None, k)


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
    n_rows = max(1, _CELLS_PER_CHUNK // probability_UC.shape[1])
    for start in range(0, len(probability_UC), n_rows):
        chunk_UC = probability_UC[start : start + n_rows].astype(np.float64)
        order_UC = np.argsort(-chunk_UC, axis=1, kind="stable")
        sorted_UC = np.take_along_axis(chunk_UC, order_UC, axis=1)
        # A class is taken if what stands before it has not exceeded tau yet; that includes the one that exceeds it.
        before_UC = np.cumsum(sorted_UC, axis=1)[:, :-1]
        taken_UC = np.concatenate([np.ones((len(chunk_UC), 1), np.bool_), before_UC <= tau], axis=1)
        np.put_along_axis(candidate_UC[start : start + n_rows], order_UC, taken_UC, axis=1)
    n_columns = max(_COLUMNS_AT_ONCE, _CELLS_PER_CHUNK // max(1, len(probability_UC)))
    for first in range(0, probability_UC.shape[1], n_columns):
        columns = slice(first, first + n_columns)
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


def cpl_targets(probability_UC: Probabilities, candidate_UC: Mask, row_M: Indices, *, soft: bool) -> Targets:
    """Candidate labels [M, C] of selected images: renormalised probabilities if `soft`, else 0/1 in uint8."""
    if not soft:
        return candidate_UC[row_M].view(np.uint8)
    target_MC = np.empty((len(row_M), probability_UC.shape[1]), np.float32)
    n_rows = max(1, _CELLS_PER_CHUNK // probability_UC.shape[1])
    for start in range(0, len(row_M), n_rows):
        row_B, target_BC = row_M[start : start + n_rows], target_MC[start : start + n_rows]
        target_BC[:] = candidate_UC[row_B]
        masked_BC = probability_UC[row_B] * target_BC
        sum_B1 = masked_BC.sum(axis=1, keepdims=True)
        target_BC /= target_BC.sum(axis=1, keepdims=True)  # stays where all candidates underflow to 0
        np.divide(masked_BC, sum_B1, out=target_BC, where=sum_B1 > 0)
    return target_MC


def _deferred_acceptance(probability_UC: Probabilities, candidate_UC: Mask | None, k: Places) -> Selection:
    """Images ask for their candidate classes in falling probability, classes keep the `k` best that ever asked.

    Gale and Shapley's algorithm, all images that seek a class at once; the outcome does not depend on who asks first.
    What a full board asks for only rises, so an image goes straight to the best class that would still take it: neither
    wish lists nor a second matrix are kept. Without `candidate_UC` every class is a candidate of every image.
    """
    n_unlabelled, n_classes = probability_UC.shape
    places_C = _places(k, n_classes)
    board = [np.empty(0, np.int64) for _ in range(n_classes)]
    # What an image has to beat: nothing while a board has room, too much where a board has no place at all.
    bar_C = np.where(places_C > 0, -np.inf, np.inf).astype(np.float32)
    bar_row_C = np.full(n_classes, n_unlabelled)
    has_candidate_U = np.ones(n_unlabelled, np.bool_) if candidate_UC is None else candidate_UC.any(axis=1)
    seeking_F = np.flatnonzero(has_candidate_U)
    while len(seeking_F):
        class_F = _best_open_class(probability_UC, candidate_UC, seeking_F, bar_C, bar_row_C)
        seeking_F, class_F = seeking_F[class_F >= 0], class_F[class_F >= 0]
        order_F = np.argsort(class_F, kind="stable")
        asked_A, first_A = np.unique(class_F[order_F], return_index=True)
        displaced = []
        for c, group in zip(asked_A.tolist(), np.split(seeking_F[order_F], first_A[1:]), strict=bool(len(asked_A))):
            contest, room = np.concatenate([board[c], group]), int(places_C[c])
            if len(contest) >= room:
                contest = _ranked(contest, probability_UC[contest, c])
                displaced.append(contest[room:])
                bar_row_C[c] = contest[room - 1]
                bar_C[c] = probability_UC[bar_row_C[c], c]
            board[c] = contest[:room]
        seeking_F = np.concatenate([np.empty(0, np.int64), *displaced])
    selection = _selection([_ranked(rows, probability_UC[rows, c]) for c, rows in enumerate(board)])
    n_selected, n_with_candidates = len(selection.row_M), int(has_candidate_U.sum())
    return Selection(
        row_M=selection.row_M,
        class_M=selection.class_M,
        waiting=n_with_candidates - n_selected,
        dropped=n_unlabelled - n_with_candidates,
    )


def _best_open_class(
    probability_UC: Probabilities,
    candidate_UC: Mask | None,
    seeking_F: Indices,
    bar_C: Probabilities,
    bar_row_C: Indices,
) -> Indices:
    """The most probable candidate class, int64 [F], whose board would take the image; -1 where there is none.

    Of equal confidences the image that stands first wins, of equal classes the first.
    """
    class_F = np.empty(len(seeking_F), np.int64)
    n_rows = max(1, _CELLS_PER_CHUNK // probability_UC.shape[1])
    for start in range(0, len(seeking_F), n_rows):
        rows = seeking_F[start : start + n_rows]
        chunk_FC = probability_UC[rows]
        open_FC = (chunk_FC > bar_C) | ((chunk_FC == bar_C) & (rows[:, None] < bar_row_C))
        if candidate_UC is not None:
            open_FC &= candidate_UC[rows]
        best_F = np.where(open_FC, chunk_FC, np.float32(-1)).argmax(axis=1)
        class_F[start : start + len(rows)] = np.where(open_FC[np.arange(len(rows)), best_F], best_F, -1)
    return class_F


def _places(k: Places, n_classes: int) -> Indices:
    """The places of every class's board, int64 [C]."""
    return np.full(n_classes, k, np.int64) if isinstance(k, int) else k


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
