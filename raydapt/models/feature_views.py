"""Weak and strong views of features, for students that never see an image.

Legend: B batch, D width of the feature.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_WEAK_PART = 0.25
"""How much less a weak view loses than a strong one."""


@dataclass(frozen=True, kw_only=True)
class FeatureViews:
    """Views in which part of a feature is missing, as what `raydapt.data.augment.Augmentation` is for images.

    Attributes:
        missing_share: Share of the values that a strong view is without; 0 leaves all there. A weak view is without a
            quarter as many. A view is brought back to the feature's length, so that what is left counts as much.
    """

    missing_share: float

    def plain(self, feature_BD: Tensor) -> Tensor:
        """Features of length sqrt(D), so that their values vary about as much as those of a normalised image."""
        return feature_BD.to(torch.float32) * math.sqrt(feature_BD.shape[1])

    def weak(self, feature_BD: Tensor) -> Tensor:
        """A weak view, every feature with its own missing values."""
        return _without(self.plain(feature_BD), _WEAK_PART * self.missing_share)

    def strong(self, feature_BD: Tensor) -> Tensor:
        """A strong view."""
        return _without(self.plain(feature_BD), self.missing_share)


def _without(feature_BD: Tensor, share: float) -> Tensor:
    """Puts a share of each feature's values to zero and keeps its length."""
    if not share:
        return feature_BD
    kept_BD = feature_BD * (torch.rand_like(feature_BD) >= share)
    length_B1 = feature_BD.norm(dim=1, keepdim=True)
    left_B1 = kept_BD.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    view_BD: Tensor = kept_BD * (length_B1 / left_B1)
    return view_BD
