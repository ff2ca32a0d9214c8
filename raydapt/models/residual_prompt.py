"""Task residuals: class embeddings that are learned themselves, with no text tower behind them (Yu et al., CVPR 2023).

Legend: B batch, C classes, D width, S image side in px.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.models.clip import Clip, OnClip
from raydapt.models.prompts import PromptedClip

PUBLISHED_SCALE = 0.5
"""alpha of the paper for all of its sets but Flowers102, which has 1 (section 4.1)."""


class ClassResidual(OnClip):
    """t' = norm(t + alpha x): fixed class embeddings t and what is learned of the task, x, from zero (eq. 5).

    The paper leaves t' as it is and normalises where cosines are taken; that is the same.

    Args:
        clip: The frozen model.
        class_CD: L2-normalised class embeddings t.
        scale: alpha.
    """

    class_CD: Tensor

    def __init__(self, clip: Clip, class_CD: Tensor, *, scale: float) -> None:
        super().__init__(clip)
        self.scale = scale
        self.register_buffer("class_CD", class_CD.detach().to(torch.float32), persistent=False)
        self.residual_CD = nn.Parameter(torch.zeros_like(self.class_CD))

    def reset(self, seed: int) -> None:
        """Back to zero, whatever the seed: the start is the zero-shot classifier."""
        with torch.no_grad():
            self.residual_CD.zero_()

    def forward(self) -> Tensor:
        """L2-normalised class embeddings [C, D]."""
        return F.normalize(self.class_CD + self.scale * self.residual_CD.to(torch.float32), dim=-1)


class ResidualPrompt(OnClip):
    """A classifier over class names whose class embeddings are learned (`ClassResidual`); it reads cached features.

    It has what methods use of `raydapt.models.prompts.PromptedClip`, and no step runs the text tower: its cost is that
    of one matrix product.

    Args:
        clip: The frozen model; only its class embeddings and logit scale are needed (`GivenEmbeddings` will do).
        class_CD: L2-normalised class embeddings that learning starts from.
        scale: alpha.
    """

    uses_pixels = False
    text: None = None
    visual: None = None
    joint: None = None

    def __init__(self, clip: Clip, class_CD: Tensor, *, scale: float = PUBLISHED_SCALE) -> None:
        super().__init__(clip)
        self.residual = ClassResidual(clip, class_CD, scale=scale)

    def reset(self, seed: int) -> None:
        """Starts anew from the given class embeddings."""
        self.residual.reset(seed)

    def forward(self, image_B: Tensor) -> Tensor:
        """Logits [B, C], float32, of features [B, D] of the frozen tower, or of uint8 pixels [B, 3, S, S]."""
        feature_BD, class_CD = self.image_features(image_B), self.class_embeddings()
        # A cosine times 100 needs more digits than bf16 has.
        with torch.autocast(feature_BD.device.type, enabled=False):
            return self.clip.logit_scale * feature_BD.to(torch.float32) @ class_CD.T

    def image_features(self, image_B: Tensor) -> Tensor:
        """L2-normalised features [B, D]; cached ones are given back."""
        return image_B if image_B.is_floating_point() else self.clip.encode_image(image_B)

    def class_embeddings(self) -> Tensor:
        """L2-normalised class embeddings [C, D] as they are learned now."""
        class_CD: Tensor = self.residual()
        return class_CD


Prompted = PromptedClip | ResidualPrompt
"""What methods learn in rounds: a prompt, or the class embeddings themselves."""
