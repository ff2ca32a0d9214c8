"""Learning from one pseudo-label per image, beside labelled images where there are some: what FPL and GRIP share.

Legend: N training images, L labelled, U unlabelled, M selected, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from raydapt.methods.air.part import AirPart
from raydapt.methods.contract import Batch, PseudoLabels, Stream, TrainingImages, one_hot
from raydapt.methods.prompting.losses import two_group_cross_entropy
from raydapt.methods.prompting.method import PromptMethod
from raydapt.models.residual_prompt import Prompted

TRAIN = "train"


class HardLabelMethod(PromptMethod):
    """Cross-entropy on hard pseudo-labels, with GRIP's weights of labelled and pseudo-labelled images.

    UL: CE. SSL: gamma CE_labelled + CE_pseudo with gamma = |U_selected| / |L|. TRZSL: CE_seen + lambda CE_unseen with
    lambda = |L| / |U|. Labelled and pseudo-labelled images are drawn from one shuffled pool, as in GRIP's code.

    Args:
        labelled_weight: `auto` for the weights above, else the factor of CE_labelled beside a factor of 1.
        **others: As in `PromptMethod`.
    """

    is_labelled_N: Tensor

    def __init__(
        self,
        prompted: Prompted,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        batch_size: int,
        rounds: int,
        seed: int,
        labelled_weight: float | Literal["auto"] = "auto",
        air: AirPart | None = None,
    ) -> None:
        super().__init__(prompted, zero_shot_CD, images, batch_size=batch_size, rounds=rounds, seed=seed, air=air)
        self.labelled_weight = labelled_weight
        self._weights = (0.0, 1.0)
        is_labelled_N = torch.zeros(0 if images is None else len(images.feature_ND), dtype=torch.bool)
        if images is not None:
            is_labelled_N[images.labelled_L] = True
        self.register_buffer("is_labelled_N", is_labelled_N.to(prompted.clip.device), persistent=False)

    def streams(self, pseudo_labels: PseudoLabels) -> list[Stream]:
        """One stream, of pseudo-labelled and labelled images together."""
        images = self.images
        pooled = Stream(
            name=TRAIN,
            index_M=torch.cat([pseudo_labels.index_M, images.labelled_L.cpu()]),
            target_MC=torch.cat([pseudo_labels.target_MC, one_hot(images.label_L.cpu(), images.n_classes)]),
            batch_size=self.batch_size,
        )
        return [pooled]

    def enter_round(self, round_: int, streams: Sequence[Stream]) -> None:
        """Sets the weights of the loss."""
        for stream in streams:
            if stream.name == TRAIN:
                n_selected = len(stream.index_M) - len(self.images.labelled_L)
                self._weights = loss_weights(self.images, n_selected, self.labelled_weight)

    def loss(self, logits: Mapping[str, Tensor], batches: Mapping[str, Batch]) -> Tensor:
        """The weighted sum of the two groups' cross-entropies."""
        batch = batches[TRAIN]
        labelled_weight, unlabelled_weight = self._weights
        return two_group_cross_entropy(
            logits[TRAIN],
            batch.target_BC,
            self.is_labelled_N[batch.index_B.to(self.is_labelled_N.device)],
            labelled_weight=labelled_weight,
            unlabelled_weight=unlabelled_weight,
        )


def loss_weights(
    images: TrainingImages, n_selected: int, labelled_weight: float | Literal["auto"]
) -> tuple[float, float]:
    """Factors of the labelled and of the pseudo-labelled images' mean cross-entropy."""
    n_labelled, n_unlabelled = len(images.labelled_L), len(images.unlabelled_U)
    if not n_labelled:
        return 0.0, 1.0
    if labelled_weight != "auto":
        return labelled_weight, 1.0
    is_trzsl = len(images.candidate_classes) < images.n_classes
    return (1.0, n_labelled / n_unlabelled) if is_trzsl else (n_selected / n_labelled, 1.0)
