"""Whether what is to be learned changes what a model computes, asked when it is built.

Towers of many kinds answer to the same interface. A layer may be there and be read past, or not be there at all; then
training would run without an error and without effect.

Legend: B batch, D width, S image side in px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from raydapt.models.clip import Clip

SAMPLE_TEXT = "a photo of a river"
_SEED = 0


def sample_pixels(clip: Clip) -> Tensor:
    """Fixed uint8 noise [1, 3, S, S]."""
    side_px, generator = clip.image_spec.size_px, torch.Generator().manual_seed(_SEED)
    return torch.randint(0, 256, (1, 3, side_px, side_px), dtype=torch.uint8, generator=generator)


def moves(output: Callable[[], Tensor], learned: Iterable[nn.Parameter]) -> bool:
    """Whether an output depends on any of the parameters, by its gradient where they stand.

    Args:
        output: Computes features [B, D] without drawing random numbers.
        learned: What is to be learned.
    """
    parameters = [parameter for parameter in learned if parameter.requires_grad]
    if not parameters:
        return False
    with torch.enable_grad():
        feature_BD = output()
        if not feature_BD.requires_grad:
            return False
        weight_BD = torch.randn(feature_BD.shape, generator=torch.Generator().manual_seed(_SEED))
        weighted = (feature_BD * weight_BD.to(feature_BD)).sum()
        gradients = torch.autograd.grad(weighted, parameters, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)
