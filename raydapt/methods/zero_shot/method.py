"""Zero-shot classification: nothing is learned.

Legend: B batch, C classes, D width, S image side in px.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raydapt.methods.contract import Batch, Method, OverImages, Stream
from raydapt.models.clip import Clip, OnClip


class ZeroShot(Method):
    """The frozen CLIP against fixed class embeddings.

    Args:
        clip: The frozen model.
        class_CD: L2-normalised class embeddings.
    """

    class_CD: Tensor

    def __init__(self, clip: Clip, class_CD: Tensor) -> None:
        super().__init__()
        self.frozen = OnClip(clip)
        self.register_buffer("class_CD", class_CD, persistent=False)

    def logits(self, image_B: Tensor) -> Tensor:
        """Logits [B, C] of float features [B, D] or uint8 pixels [B, 3, S, S]."""
        clip = self.frozen.clip
        feature_BD = image_B if image_B.is_floating_point() else clip.encode_image(image_B)
        with torch.autocast(feature_BD.device.type, enabled=False):
            return clip.logit_scale * feature_BD.to(torch.float32) @ self.class_CD.T

    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        """There are no rounds, so there is nothing to learn from."""
        return []

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """A constant loss: there is nothing to learn."""
        return self.class_CD.new_zeros(())
