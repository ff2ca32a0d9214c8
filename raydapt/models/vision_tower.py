"""Extra tokens for the vision transformers of open_clip, its own ones and those of timm.

Legend: B batch, L extra tokens, P tokens before the patches (the class token), N all tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from raydapt.errors import UserError


def vision_width(visual: nn.Module) -> int:
    """Width of the tokens of an image tower.

    Raises:
        UserError: When the tower is no vision transformer.
    """
    return _parts(visual)[3]


@contextmanager
def extra_tokens(visual: nn.Module, prompt_LD: Tensor) -> Iterator[None]:
    """Within it, the tower also reads `prompt_LD`, behind the class token and before the first layer norm.

    The extra tokens are taken out again behind the last block, so that every kind of pooling sees the tokens it knows.

    Raises:
        UserError: When the tower is no vision transformer.
    """
    entry, blocks, n_before, _ = _parts(visual)
    n_extra = len(prompt_LD)

    def insert(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        token_BND: Tensor = arguments[0]
        prompt_BLD = prompt_LD.to(token_BND.dtype).expand(token_BND.shape[0], -1, -1)
        return (torch.cat([token_BND[:, :n_before], prompt_BLD, token_BND[:, n_before:]], dim=1),)

    def remove(_: nn.Module, __: tuple[Any, ...], token_BND: Tensor) -> Tensor:
        return torch.cat([token_BND[:, :n_before], token_BND[:, n_before + n_extra :]], dim=1)

    handles = (entry.register_forward_pre_hook(insert), blocks.register_forward_hook(remove))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(visual: nn.Module) -> tuple[nn.Module, nn.Module, int, int]:
    """What the extra tokens go in before, the blocks, the tokens before the patches, and the width."""
    if isinstance(visual, VisionTransformer):
        return visual.ln_pre, visual.transformer, 1, int(visual.class_embedding.shape[0])
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, TimmVisionTransformer):
        trunk: Any = visual.trunk
        return trunk.norm_pre, trunk.blocks, int(trunk.num_prefix_tokens), int(trunk.embed_dim)
    raise UserError(
        f"Setting model.prompt needs a plain vision transformer for visual prompts, and this image tower is a "
        f"{type(getattr(visual, 'trunk', visual)).__name__}: choose model.prompt=text or another model.clip."
    )
