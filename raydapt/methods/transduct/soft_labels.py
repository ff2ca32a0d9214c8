"""Soft labels of many images, of which each image's largest are kept.

Legend: N images, B block of images, C classes, L labels kept, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydapt.methods.transduct.neighbours import Neighbours


@dataclass(frozen=True)
class SoftLabels:
    """Distributions over the classes; what is not kept is 0 and the rest sums to 1.

    10^6 images with 32 labels take 192 MB, whatever the number of classes; with C <= L nothing is lost.
    """

    class_NL: Tensor
    """int16; int32 of more than 32,767 classes."""
    share_NL: Tensor
    """float32."""
    n_classes: int

    @classmethod
    def empty(cls, n_images: int, n_classes: int, kept: int, device: torch.device) -> SoftLabels:
        """Room for labels, to be written with `write`."""
        shape = (n_images, min(kept, n_classes))
        smallest = torch.int16 if n_classes <= torch.iinfo(torch.int16).max else torch.int32
        return cls(
            torch.zeros(shape, dtype=smallest, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
            n_classes,
        )

    def write(self, rows: slice, probability_BC: Tensor) -> None:
        """Keeps the largest labels of a block of images, renormalised."""
        best = probability_BC.topk(self.class_NL.shape[1], dim=1)
        self.class_NL[rows] = best.indices.to(self.class_NL.dtype)
        self.share_NL[rows] = best.values / best.values.sum(dim=1, keepdim=True)

    def dense(self, rows: slice | Tensor) -> Tensor:
        """float32 [B, C] of a block of images, or of those of int64 rows."""
        share_BL = self.share_NL[rows]
        return share_BL.new_zeros(len(share_BL), self.n_classes).scatter_(1, self.class_NL[rows].long(), share_BL)

    def neighbours_mean(self, neighbours: Neighbours, rows: slice, *, normalised: bool = True) -> Tensor:
        """float32 [B, C]: the labels of each image's neighbours weighted by affinity: sum_j w_ij z_j.

        Args:
            neighbours: Of all images.
            rows: The block.
            normalised: Divide by the sum of the affinities, so that it is a distribution.
        """
        weight_BK, index_BK = neighbours.affinity_NK[rows], neighbours.index_NK[rows].long()
        if normalised:
            weight_BK = weight_BK / weight_BK.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        shape, index_M = (*index_BK.shape, -1), index_BK.flatten()
        class_BKL = self.class_NL.index_select(0, index_M).long().reshape(shape)
        share_BKL = self.share_NL.index_select(0, index_M).reshape(shape) * weight_BK[:, :, None]
        mean_BC = share_BKL.new_zeros(len(index_BK), self.n_classes)
        return mean_BC.scatter_add_(1, class_BKL.flatten(1), share_BKL.flatten(1))
