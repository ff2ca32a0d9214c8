"""WCA: crops of an image against descriptions of a class, with the frozen model (Li et al., ICML 2024).

Legend: B batch, C classes, K crops of an image, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.artefacts.inputs import InputKind
from raydapt.data.classes import ClassSpace
from raydapt.methods.contract import Batch, Method, OverImages, Stream
from raydapt.methods.fair.method import described
from raydapt.methods.fair.rules import class_sums, composite, crop_weights, description_weights
from raydapt.methods.fair.settings import FairSettings
from raydapt.models.clip import Clip, OnClip


class Wca(Method):
    """score(x, c) = norm(sum_i rho_i f_i) . norm(sum_d v_cd e_cd); nothing is learned.

    rho weighs the crops by their similarity to the whole image, v the descriptions of a class by theirs to its prompt.
    The paper (ICML 2024) writes the double sum without the two norms; its public code has them.

    Args:
        clip: The frozen model.
        classes: Names and templates.
        settings: Those of `Fair`: crops, how many count, descriptions and their weights.
        unit_means: Whether both means are normalised.
    """

    text_CD: Tensor

    def __init__(self, clip: Clip, classes: ClassSpace, *, settings: FairSettings, unit_means: bool = True) -> None:
        super().__init__()
        self.frozen = OnClip(clip)
        self.settings, self.unit_means = settings, unit_means
        self.input_kind: InputKind = "crops" if settings.n_crops else "features"
        embedding_MD, class_M = described(clip, classes, settings)
        prompt_CD = clip.class_embeddings(classes.names, classes.templates)
        weight_M = description_weights(settings.anchor_mean, embedding_MD, class_M, prompt_CD)
        text_CD = class_sums(weight_M[:, None] * embedding_MD, class_M, len(classes.names))
        self.register_buffer("text_CD", F.normalize(text_CD, dim=1) if unit_means else text_CD, persistent=False)

    def logits(self, image_B: Tensor) -> Tensor:
        """Scores [B, C] of features of image and crops [B, 1 + K, D], or of features [B, D]."""
        feature_BD = self._mean_of_crops(image_B) if image_B.dim() == 3 else image_B
        with torch.autocast(feature_BD.device.type, enabled=False):
            return self.frozen.clip.logit_scale * feature_BD.to(torch.float32) @ self.text_CD.T

    def read_features(self, image_B: Tensor) -> Tensor | None:
        """The weighted mean of the crops, where there are some."""
        return self._mean_of_crops(image_B) if image_B.dim() == 3 else None

    def _mean_of_crops(self, image_BKD: Tensor) -> Tensor:
        whole_BD, crop_BKD = image_BKD[:, 0], image_BKD[:, 1 : 1 + self.settings.n_crops]
        top_k, temperature = self.settings.top_k, self.settings.temperature
        if self.unit_means:
            return composite(whole_BD, crop_BKD, top_k=top_k, temperature=temperature)
        rho_BK = crop_weights(whole_BD, crop_BKD, top_k=top_k, temperature=temperature)
        return torch.einsum("bk,bkd->bd", rho_BK, crop_BKD)

    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        """There are no rounds."""
        return []

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """A constant loss: there is nothing to learn."""
        return self.text_CD.new_zeros(())
