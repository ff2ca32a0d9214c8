"""Quantiles of every column of a probability matrix that is never there as a whole, exactly, in two passes.

Legend: U images, S images of a sample, C classes, B images of a block, E entries between the bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raydapt.methods.prompting.probability_blocks import Probabilities, ProbabilityBlocks

_CELLS_OF_SAMPLE = 1 << 24
_MARGINS = (4.0, 32.0, math.inf)
"""Standard deviations of a sample's quantile between it and the bounds: at first, and where that was too little."""


def sample_of(probability_UC: ProbabilityBlocks) -> tuple[Probabilities, Probabilities]:
    """One pass: the largest probability of every image [U], and an even sample [S, C] of the rows."""
    step = max(1, math.ceil(probability_UC.shape[0] * probability_UC.shape[1] / _CELLS_OF_SAMPLE))
    largest, sample = [], []
    for rows, block_BC in probability_UC:
        largest.append(block_BC.max(axis=1))
        sample.append(block_BC[-rows.start % step :: step].copy())  # a view would keep the block
    return np.concatenate(largest), np.concatenate(sample)


def column_quantiles(
    probability_UC: ProbabilityBlocks, sample_SC: Probabilities, share_C: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Numpy's linear quantiles [C] of the columns in float64, one share for each.

    A sample says between which bounds the two numbers lie that a quantile is made of. A pass over all images counts
    what lies below and keeps what lies between; where the sample was wrong, the bounds are widened for another one.

    Args:
        probability_UC: All images.
        sample_SC: An even sample of the rows, see `sample_of`.
        share_C: 0 to 1.
    """
    n_images, n_classes = probability_UC.shape
    if len(sample_SC) == n_images:
        columns = (np.quantile(sample_SC[:, c].astype(np.float64), share_C[c]) for c in range(n_classes))
        return np.fromiter(columns, np.float64, n_classes)
    place_C = share_C * (n_images - 1)
    first_C = np.minimum(np.floor(place_C).astype(np.int64), n_images - 1)
    second_C = np.minimum(first_C + 1, n_images - 1)
    quantile_C, missing_M = np.full(n_classes, np.nan), np.arange(n_classes)
    for margin in _MARGINS:
        between = _Between.of(sample_SC[:, missing_M], share_C[missing_M], margin)
        for _, block_BC in probability_UC:
            between.count(block_BC[:, missing_M] if len(missing_M) < n_classes else block_BC)
        found_M = between.ranked(np.stack([first_C[missing_M], second_C[missing_M]], axis=1))
        for c, pair in zip(missing_M.tolist(), found_M, strict=True):
            quantile_C[c] = np.quantile(pair, place_C[c] - first_C[c])
        missing_M = np.flatnonzero(np.isnan(quantile_C))
        if not len(missing_M):
            break
    return quantile_C


@dataclass
class _Between:
    """What lies between two bounds of every column, both included, and how many numbers lie below."""

    low_C: Probabilities
    high_C: Probabilities
    below_C: npt.NDArray[np.int64]
    at_low_C: npt.NDArray[np.int64]
    at_high_C: npt.NDArray[np.int64]
    class_E: list[npt.NDArray[np.int32]] = field(default_factory=list)
    value_E: list[Probabilities] = field(default_factory=list)

    @classmethod
    def of(cls, sample_SC: Probabilities, share_C: npt.NDArray[np.float64], margin: float) -> _Between:
        """Around the sample's quantiles."""
        n_sample, n_classes = sample_SC.shape
        sorted_SC = np.sort(sample_SC, axis=0)
        spread_C = margin * (np.sqrt(n_sample * share_C * (1 - share_C)) + 1)
        column_C, last = np.arange(n_classes), n_sample - 1
        low_C, high_C = np.floor(share_C * last - spread_C), np.ceil(share_C * last + spread_C)
        lowest_C = np.where(low_C < 0, -np.inf, sorted_SC[low_C.clip(0, last).astype(np.int64), column_C])
        highest_C = np.where(high_C > last, np.inf, sorted_SC[high_C.clip(0, last).astype(np.int64), column_C])
        below_C, at_low_C, at_high_C = np.zeros((3, n_classes), np.int64)
        return cls(lowest_C.astype(np.float32), highest_C.astype(np.float32), below_C, at_low_C, at_high_C)

    def count(self, block_BC: Probabilities) -> None:
        """Takes in some images. Numbers that are a bound are only counted: there may be very many, such as zeros."""
        self.below_C += (block_BC < self.low_C).sum(axis=0)
        self.at_low_C += (block_BC == self.low_C).sum(axis=0)
        self.at_high_C += ((block_BC == self.high_C) & (self.high_C > self.low_C)).sum(axis=0)
        image_E, class_E = np.nonzero((block_BC > self.low_C) & (block_BC < self.high_C))
        self.class_E.append(class_E.astype(np.int32))
        self.value_E.append(block_BC[image_E, class_E])

    def ranked(self, rank_CR: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The numbers [C, R] of these ranks, 0 the smallest; NaN for one that does not lie between the bounds."""
        class_E, value_E = np.concatenate(self.class_E), np.concatenate(self.value_E)
        order_E = np.lexsort((value_E, class_E))
        value_E = value_E[order_E].astype(np.float64)
        end_C = np.cumsum(np.bincount(class_E, minlength=len(self.low_C)))
        found_CR = np.full(rank_CR.shape, np.nan)
        for c, ranks in enumerate(rank_CR):
            inside = value_E[end_C[c - 1] if c else 0 : end_C[c]]
            for r, rank in enumerate(ranks - self.below_C[c]):
                if 0 <= rank < self.at_low_C[c]:
                    found_CR[c, r] = self.low_C[c]
                elif 0 <= rank - self.at_low_C[c] < len(inside):
                    found_CR[c, r] = inside[rank - self.at_low_C[c]]
                elif 0 <= rank - self.at_low_C[c] - len(inside) < self.at_high_C[c]:
                    found_CR[c, r] = self.high_C[c]
        return found_CR
