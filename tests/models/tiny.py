"""Tiny random CLIP models of open_clip's own classes, so that tests need no weights."""

import functools
from typing import Any

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel

from raydapt.data.decode import ImageSpec
from raydapt.models.clip import Clip

SIDE_PX = 32
CONTEXT_LENGTH = 40
EMBED_DIM = 24
VISION = {"image_size": SIDE_PX, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TEXT: dict[str, Any] = {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SPEC = ImageSpec(
    size_px=SIDE_PX,
    resize_mode="shortest",
    interpolation="bicubic",
    mean=(0.48, 0.46, 0.41),
    std=(0.27, 0.26, 0.28),
)


@functools.lru_cache
def tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)


def tiny_model(kind: str = "clip", *, seed: int = 0) -> torch.nn.Module:
    """`clip`, `custom` (text tower apart, pooled at a given token), `bidirectional` (as SigLIP), `timm` image tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "clip":
            model: torch.nn.Module = open_clip.CLIP(EMBED_DIM, VISION, TEXT)
        elif kind == "custom":
            text = {**TEXT, "pool_type": "eos", "eos_id": 49407, "proj_bias": True}
            model = open_clip.CustomTextCLIP(EMBED_DIM, VISION, text)
        elif kind == "bidirectional":
            text = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
            model = open_clip.CustomTextCLIP(EMBED_DIM, {**VISION, "pool_type": "avg"}, text)
        elif kind == "class_token":
            model = open_clip.CustomTextCLIP(EMBED_DIM, VISION, {**TEXT, "embed_cls": True})
        else:
            model = open_clip.CLIP(EMBED_DIM, VISION, TEXT)
            visual = TimmModel("vit_tiny_patch16_224", EMBED_DIM, pool="token")
            visual.trunk = timm.create_model(
                "vit_tiny_patch16_224",
                img_size=SIDE_PX,
                patch_size=8,
                embed_dim=32,
                depth=2,
                num_heads=2,
                num_classes=0,
            )
            visual.head = torch.nn.Linear(32, EMBED_DIM)
            model.visual = visual
        for name, parameter in model.named_parameters():  # open_clip starts these at numbers that hide mistakes
            if "positional_embedding" in name or "token_embedding" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def tiny_clip(kind: str = "clip", *, seed: int = 0) -> Clip:
    model = tiny_model(kind, seed=seed)
    return Clip(model, tokenizer(), name=kind, identity=f"{kind}-{seed}", image_spec=SPEC, embed_dim=EMBED_DIM)


def pixels(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, SIDE_PX, SIDE_PX), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
