"""Probabilities of many images and classes, a block of rows at a time: a million images of a thousand classes are 4 GB.

Legend: U unlabelled images, B images of a block, C classes, K candidate classes, D width, L classes of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Probabilities = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Rows = slice | Tensor
"""Some of the U images."""
CELLS_PER_BLOCK = 1 << 21
"""Images x classes that are worked on at a time (8 MiB)."""
CELLS_KEPT = 1 << 26
"""Images x classes up to which blocks are kept once they are made (256 MiB)."""
_CLASS_BITS = 20


class ProbabilityBlocks:
    """P [U, K], in blocks of rows that are always the same ones.

    The blocks of a small set are kept. Others are made anew each time, from the same numbers in the same shapes, so
    that whoever comes by twice finds the same bits.

    Args:
        shape: U and K.
        rows_of: Probabilities [B, K] of some of the images.
    """

    def __init__(self, shape: tuple[int, int], rows_of: Callable[[Rows], Probabilities]) -> None:
        self.shape, self.rows_of = shape, rows_of
        self._step = max(1, CELLS_PER_BLOCK // shape[1])
        self._kept: dict[int, Probabilities] | None = {} if shape[0] * shape[1] <= CELLS_KEPT else None

    @classmethod
    def of(cls, probability_UK: Probabilities) -> ProbabilityBlocks:
        """Blocks of a matrix that is there."""
        n_images, n_classes = probability_UK.shape
        return cls((n_images, n_classes), lambda rows: probability_UK[rows])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[tuple[slice, Probabilities]]:
        """The rows of every block, and its probabilities [B, K]."""
        for start in range(0, self.shape[0], self._step):
            yield self._block(start)

    def holding(self, row_F: Indices) -> Iterator[tuple[slice, Probabilities]]:
        """The blocks that hold any of these rows."""
        for number in np.unique(row_F // self._step).tolist():
            yield self._block(number * self._step)

    def _block(self, start: int) -> tuple[slice, Probabilities]:
        rows = slice(start, min(start + self._step, self.shape[0]))
        if self._kept is None:
            return rows, self.rows_of(rows)
        if start not in self._kept:
            self._kept[start] = self.rows_of(rows)
        return rows, self._kept[start]


def softmax_blocks(
    n_images: int, features_of: Callable[[Rows], Tensor], class_CD: Tensor, logit_scale: float, candidates_K: Tensor
) -> ProbabilityBlocks:
    """Softmaxes of s t . f over all classes, of which those of the candidate classes are kept, renormalised.

    Args:
        n_images: U.
        features_of: L2-normalised features [B, D] of some of the images.
        class_CD: L2-normalised class embeddings, on the device that computes.
        logit_scale: Factor s.
        candidates_K: int64 classes that an image may be given.
    """
    candidates = candidates_K.cpu().numpy()

    @torch.no_grad()
    def rows_of(rows: Rows) -> Probabilities:
        feature_BD = features_of(rows).to(class_CD)
        probability_BC = (logit_scale * feature_BD @ class_CD.T).softmax(dim=1)
        return restrict_probability(probability_BC.cpu().numpy(), candidates)

    return ProbabilityBlocks((n_images, len(candidates)), rows_of)


def restrict_probability(probability_BC: Probabilities, candidate_classes: Indices) -> Probabilities:
    """The columns of the candidate classes, renormalised; the softmax over these classes alone.

    Where every class is a candidate nothing is restricted, and the matrix itself comes back.
    """
    if np.array_equal(candidate_classes, np.arange(probability_BC.shape[1])):
        return probability_BC
    kept_BK = probability_BC[:, candidate_classes]
    sum_B1 = kept_BK.sum(axis=1, keepdims=True)
    np.divide(kept_BK, sum_B1, out=kept_BK, where=sum_B1 > 0)
    # An image so certainly of another class that all candidates underflow to 0 says nothing about them.
    kept_BK[sum_B1[:, 0] <= 0] = 1 / len(candidate_classes)
    return kept_BK


def top_classes(
    probability_BC: Probabilities, n_best: int, open_BC: npt.NDArray[np.bool_] | None = None
) -> tuple[Indices, Probabilities]:
    """The most probable classes of each image in falling probability, of equal ones the first, and the probabilities.

    Positive floats are ordered as their bits are. Behind them stands the class, turned round, to decide between equals.

    Args:
        probability_BC: Not negative.
        n_best: Classes [B, L] that are wanted, L at most C.
        open_BC: Classes that come first; the others stand behind them, in the same order.
    """
    n_classes = probability_BC.shape[1]
    key_BC = np.ascontiguousarray(probability_BC).view(np.int32).astype(np.int64) << _CLASS_BITS
    key_BC |= n_classes - 1 - np.arange(n_classes)
    if open_BC is not None:
        key_BC |= open_BC.astype(np.int64) << 62
    if n_best < n_classes:
        key_BC = np.partition(key_BC, n_classes - n_best, axis=1)[:, n_classes - n_best :]
    key_BC.sort(axis=1)
    class_BL = n_classes - 1 - (key_BC[:, ::-1] & ((1 << _CLASS_BITS) - 1))
    return class_BL, np.take_along_axis(probability_BC, class_BL, axis=1)
