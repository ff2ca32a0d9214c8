"""Captions of groups, drawn anew for every image of a batch (LatteCLIP).

Legend: N training images, B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


class GroupDraw:
    """The caption of a random image of a class, for every image of a batch (LatteCLIP).

    Args:
        text_N: int64 text of every image, -1 where it has none; those are never drawn.
        class_N: int64 zero-shot class of every image.
        n_classes: C.
    """

    def __init__(self, text_N: Tensor, class_N: Tensor, n_classes: int) -> None:
        held_M = (text_N >= 0).nonzero().flatten()
        order_M = held_M[class_N[held_M].argsort(stable=True)]
        self._text_M = text_N[order_M]
        self._count_C = class_N[held_M].bincount(minlength=n_classes)
        self._start_C = self._count_C.cumsum(0) - self._count_C

    def draw(self, class_B: Tensor) -> Tensor:
        """int64 texts [B] from torch's global generator; -1 for a class without any."""
        random_B = torch.rand(len(class_B), dtype=torch.float64)
        if not len(self._text_M):
            return torch.full((len(class_B),), -1)
        count_B = self._count_C[class_B]
        place_B = self._start_C[class_B] + (random_B * count_B).long()
        return torch.where(count_B > 0, self._text_M[place_B.clamp(max=len(self._text_M) - 1)], -1)
