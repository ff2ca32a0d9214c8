"""An image tower whose LayerNorms are learned while everything else of it stays frozen and shared.

Legend: B batch, D width of the shared space, S image side in px.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.errors import UserError
from raydapt.models.clip import Clip, OnClip
from raydapt.models.effect import moves, sample_pixels


class TunedNorms(OnClip):
    """The image tower of a `Clip` with LayerNorm parameters of its own; those of the `Clip` are never touched.

    Args:
        clip: The frozen model.
        learn: Whether there are own parameters; without, this is the frozen tower.

    Raises:
        UserError: When the tower has no LayerNorm to learn.
    """

    def __init__(self, clip: Clip, *, learn: bool) -> None:
        super().__init__(clip)
        norms = {
            f"{place}.{name}": parameter
            for place, module in (clip.model.visual.named_modules() if learn else ())
            if isinstance(module, nn.LayerNorm)
            for name, parameter in module.named_parameters(recurse=False)
        }
        if learn and not norms:
            raise UserError(
                f"Setting fair.layer_norms=true, but the image tower of model.clip={clip.name!r} has no LayerNorm: "
                "set it to false to learn the anchors alone, or choose a vision transformer."
            )
        self._places = tuple(norms)
        self.norms = nn.ParameterList([nn.Parameter(norms[place].detach().clone()) for place in self._places])
        if learn and not moves(lambda: self.encode(sample_pixels(clip)), self.norms):
            raise UserError(
                f"Setting fair.layer_norms=true, but no feature of model.clip={clip.name!r} depends on the LayerNorms "
                "of its image tower: set it to false to learn the anchors alone, or choose a vision transformer."
            )

    def encode(self, view_B3SS: Tensor) -> Tensor:
        """L2-normalised float32 features [B, D] of views with values in 0..255."""
        clip = self.clip
        if not self._places:
            return clip.encode_image(view_B3SS)
        own = dict(zip(self._places, self.norms, strict=True))
        visual: Any = clip.model.visual
        answer: Any = torch.func.functional_call(visual, own, (clip.normalise_pixels(view_B3SS),))
        feature_BD: Tensor = answer[0] if isinstance(answer, tuple) else answer  # CoCa's also gives its tokens
        return F.normalize(feature_BD.to(torch.float32), dim=-1)
