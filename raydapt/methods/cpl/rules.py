"""CPL's rules: candidate sets within and between images, the selection, and the targets (Zhang et al., ICML 2024).

Legend: U unlabelled images, B images of a block, C candidate classes, M selected images, L classes of a list,
E candidates of all images together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from raydapt.methods.prompting.matching import WishLists, deferred_acceptance
from raydapt.methods.prompting.probability_blocks import Indices, Probabilities, ProbabilityBlocks, top_classes
from raydapt.methods.prompting.pseudo_labels import Places, Selection, places_of, wish_lists
from raydapt.methods.prompting.quantiles import column_quantiles, sample_of

_LIST = 32
"""Classes of an image that are looked at first; most candidate sets are smaller."""


def cpl_candidates(probability_UC: ProbabilityBlocks, alpha: float, beta: float | npt.NDArray[np.float64]) -> WishLists:
    """CPL's candidate sets: intra-image and inter-image rule together.

    Intra: with tau the `alpha` quantile of the rows' maxima, a row's classes in falling probability while their running
    sum is at most tau, plus the one that makes it exceed tau. Inter: the images at or above the `beta` quantile of a
    class's column; `beta` may differ from class to class.
    """
    n_classes = probability_UC.shape[1]
    largest_U, sample_SC = sample_of(probability_UC)
    tau = float(np.quantile(largest_U.astype(np.float64), alpha))
    bound_C = column_quantiles(probability_UC, sample_SC, np.broadcast_to(np.asarray(beta, np.float64), n_classes))
    sizes, classes, probabilities = [], [], []
    for _, block_BC in probability_UC:
        class_BL, probability_BL, listed_BL = _within(block_BC, tau)
        listed_BL &= probability_BL.astype(np.float64) >= bound_C[class_BL]
        sizes.append(listed_BL.sum(axis=1))
        classes.append(class_BL[listed_BL].astype(np.int32))
        probabilities.append(probability_BL[listed_BL])
    return wish_lists(sizes, classes, probabilities)


def _within(block_BC: Probabilities, tau: float) -> tuple[Indices, Probabilities, npt.NDArray[np.bool_]]:
    """The intra-image rule: classes in falling probability, their probabilities, and which of them are taken."""
    n_classes = block_BC.shape[1]
    n_listed = min(_LIST, n_classes)
    while True:
        class_BL, probability_BL = top_classes(block_BC, n_listed)
        total_BL = np.cumsum(probability_BL.astype(np.float64), axis=1)
        if n_listed == n_classes or bool((total_BL[:, -1] > tau).all()):
            # A class is taken if what stands before it has not exceeded tau yet; that includes the one that exceeds it.
            first_B1 = np.ones((len(block_BC), 1), np.bool_)
            return class_BL, probability_BL, np.concatenate([first_B1, total_BL[:, :-1] <= tau], axis=1)
        n_listed = min(4 * n_listed, n_classes)


def cpl_select(candidates: WishLists, k: Places, n_classes: int) -> Selection:
    """CPL's selection: each class keeps its `k` most confident images, displaced ones try their next candidate class.

    selected + waiting + dropped = all images.
    """
    rows, confidences = deferred_acceptance(candidates, places_of(k, n_classes))
    without = int((candidates.size_U == 0).sum())
    return Selection.of(rows, confidences, len(candidates.size_U), dropped=without)


def cpl_targets(candidates: WishLists, row_M: Indices, n_classes: int, *, soft: bool) -> csr_array:
    """Candidate labels [M, C] of selected images, float32: renormalised probabilities if `soft`, else ones."""
    owner_E, entry_E = candidates.entries(row_M)
    size_M, weight_E = candidates.size_U[row_M], np.ones(len(entry_E), np.float32)
    if soft:
        weight_E = candidates.probability_E[entry_E]
        sum_M = np.bincount(owner_E, weights=weight_E, minlength=len(row_M)).astype(np.float32)
        even_E = 1 / size_M[owner_E].astype(np.float32)  # where all candidates underflow to 0
        weight_E = np.divide(weight_E, sum_M[owner_E], out=even_E, where=sum_M[owner_E] > 0)
    start = np.concatenate([[0], np.cumsum(size_M)])
    target_MC = csr_array((weight_E, candidates.class_E[entry_E], start), shape=(len(row_M), n_classes))
    target_MC.sort_indices()
    target_MC.eliminate_zeros()
    return target_MC
