"""Transduction as a method: what a fit learned, for new images.

Legend: B batch, C classes, D width, S image side in px.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raydapt.methods.contract import Batch, Method, OverImages, Stream
from raydapt.methods.transduct.fit import TransductFit
from raydapt.models.clip import Clip, OnClip

FITTED = "fitted_"
"""Begins the names of what is known of the images that were fitted, which a method that only predicts does without."""


class Transduct(Method):
    """softmax(lambda s t . f + w . f + b): the inductive answer of a fit (see `rules`), with log pi in b.

    The images that were fitted have their own answer, `TransductFit.labels`, which also knows their neighbours.

    Args:
        clip: The frozen model.
        text_CD: L2-normalised class embeddings that the fit started from.
        text_strength: Lambda.
        fit: The fit; None for a method that is only to predict.
    """

    text_CD: Tensor
    weight_CD: Tensor
    bias_C: Tensor

    def __init__(self, clip: Clip, text_CD: Tensor, text_strength: float, fit: TransductFit | None) -> None:
        super().__init__()
        self.frozen, self.text_strength = OnClip(clip), text_strength
        self.register_buffer("text_CD", text_CD, persistent=False)
        self.register_buffer("weight_CD", torch.zeros_like(text_CD) if fit is None else fit.head.weight_CD)
        self.register_buffer("bias_C", text_CD.new_zeros(len(text_CD)) if fit is None else fit.head.bias_C)
        if fit is None:
            self.register_load_state_dict_pre_hook(_forget_images)  # type: ignore[no-untyped-call]
            return
        best = fit.labels.share_NL.max(dim=1)
        self.register_buffer(f"{FITTED}class_N", fit.labels.class_NL.gather(1, best.indices[:, None])[:, 0].long())
        self.register_buffer(f"{FITTED}confidence_N", best.values.float())
        self.register_buffer(f"{FITTED}log_prior_C", fit.log_prior_C)

    def logits(self, image_B: Tensor) -> Tensor:
        """Logits [B, C] of float features [B, D] or uint8 pixels [B, 3, S, S]."""
        clip = self.frozen.clip
        feature_BD = image_B if image_B.is_floating_point() else clip.encode_image(image_B)
        weight_CD = self.text_strength * clip.logit_scale * self.text_CD + self.weight_CD
        with torch.autocast(feature_BD.device.type, enabled=False):
            return feature_BD.to(torch.float32) @ weight_CD.T + self.bias_C

    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        """There are no rounds: a fit is all there is to learn."""
        return []

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """A constant loss: there is nothing to learn by gradient."""
        return self.bias_C.new_zeros(())


def _forget_images(method: nn.Module, state: dict[str, Any], *_: object) -> None:
    for name in [name for name in state if name.startswith(FITTED)]:
        del state[name]
