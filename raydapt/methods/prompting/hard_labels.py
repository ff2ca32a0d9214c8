"""Learning from one pseudo-label per image, beside labelled images where there are some: what FPL and GRIP share.

Legend: N training images, L labelled, U unlabelled, M selected, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.sparse import vstack
from torch import Tensor

from raydapt.methods.air.part import AirPart
from raydapt.methods.contract import Batch, PseudoLabels, Stream, TrainingImages
from raydapt.methods.prompting.losses import two_group_cross_entropy
from raydapt.methods.prompting.method import PromptMethod
from raydapt.methods.targets import one_hot_rows, sparse
from raydapt.models.residual_prompt import Prompted

TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """How labelled and pseudo-labelled images are weighed against each other."""

    labelled: float | Literal["auto"] = "auto"
    """``auto``: by the numbers of images, as `HardLabelMethod` tells; else the factor of the labelled ones."""
    trzsl: Literal["selected", "unlabelled"] = "selected"
    """What lambda divides by in TRZSL: the round's pseudo-labelled images, or all unlabelled ones."""


class HardLabelMethod(PromptMethod):
    """Cross-entropy on hard pseudo-labels, with GRIP's weights of labelled and pseudo-labelled images.

    UL: CE. SSL: gamma CE_labelled + CE_pseudo with gamma = |U_selected| / |L|. TRZSL: CE_seen + lambda CE_unseen with
    lambda = |L| / |U_selected| (the public code; the paper divides by |U|). Labelled and pseudo-labelled images are
    drawn from one shuffled pool, as in GRIP's code.

    Args:
        weighting: Of the two groups.
        train_share: Share of both groups that a round learns from, drawn by the seed; the rest is put aside.
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
        weighting: Weighting | None = None,
        train_share: float = 1.0,
        air: AirPart | None = None,
    ) -> None:
        super().__init__(prompted, zero_shot_CD, images, batch_size=batch_size, rounds=rounds, seed=seed, air=air)
        self.weighting, self.train_share = weighting or Weighting(), train_share
        self._weights = (0.0, 1.0)
        is_labelled_N = torch.zeros(0 if images is None else len(images.feature_ND), dtype=torch.bool)
        if images is not None:
            is_labelled_N[images.labelled_L] = True
        self.register_buffer("is_labelled_N", is_labelled_N.to(prompted.clip.device), persistent=False)

    def streams(self, pseudo_labels: PseudoLabels) -> list[Stream]:
        """One stream, of pseudo-labelled and labelled images together."""
        images = self.images
        index_M = torch.cat([pseudo_labels.index_M, images.labelled_L.cpu()])
        label_LC = one_hot_rows(images.label_L.cpu().numpy(), images.n_classes)
        target_MC = vstack([sparse(pseudo_labels.target_MC), label_LC], format="csr")
        if self.train_share < 1:
            kept_M = self._kept(len(pseudo_labels.index_M), len(index_M))
            index_M, target_MC = index_M[kept_M], target_MC[kept_M.numpy()]
        return [Stream(name=TRAIN, index_M=index_M, target_MC=target_MC, batch_size=self.batch_size)]

    def _kept(self, n_pseudo: int, n_all: int) -> Tensor:
        """Places in the pool that are learned from: the share of each group, at least one image of it."""
        generator = torch.Generator().manual_seed(self.seed)
        groups = [torch.arange(n_pseudo), torch.arange(n_pseudo, n_all)]
        orders = [group[torch.randperm(len(group), generator=generator)] for group in groups if len(group)]
        return torch.cat([order[: max(1, int(self.train_share * len(order)))] for order in orders]).sort().values

    def enter_round(self, round_: int, streams: Sequence[Stream]) -> None:
        """Sets the weights of the loss."""
        for stream in streams:
            if stream.name == TRAIN:
                n_labelled = int(self.is_labelled_N[stream.index_M.to(self.is_labelled_N.device)].sum())
                n_selected = len(stream.index_M) - n_labelled
                self._weights = loss_weights(self.images, n_labelled, n_selected, self.weighting)

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


def loss_weights(images: TrainingImages, n_labelled: int, n_selected: int, weighting: Weighting) -> tuple[float, float]:
    """Factors of the labelled and of the pseudo-labelled images' mean cross-entropy.

    Args:
        images: All images.
        n_labelled: Labelled images that are learned from.
        n_selected: Pseudo-labelled images that are learned from in this round.
        weighting: The kind of factors.
    """
    if not n_labelled:
        return 0.0, 1.0
    if weighting.labelled != "auto":
        return weighting.labelled, 1.0
    if len(images.candidate_classes) == images.n_classes:
        return n_selected / n_labelled, 1.0
    return 1.0, n_labelled / (n_selected if weighting.trzsl == "selected" else len(images.unlabelled_U))
