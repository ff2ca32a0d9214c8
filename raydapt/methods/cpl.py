"""CPL: candidate pseudo-labels (Zhang et al., ICML 2024).

Legend: U unlabelled, L labelled, B batch, C classes, K candidate classes, M selected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.config import CplSettings
from raydapt.methods.contract import Batch, PseudoLabels, Stream, TrainingImages, one_hot
from raydapt.methods.losses import candidate_loss
from raydapt.methods.prompt_method import PromptMethod
from raydapt.methods.pseudo_labels import cpl_candidates, cpl_select, cpl_targets, growing_count
from raydapt.models.prompts import PromptedClip

PSEUDO, LABELLED = "pseudo", "labelled"
_LABELLED_BATCH = (8, 256)


class Cpl(PromptMethod):
    """Sets of candidate classes instead of one pseudo-label, chosen by confidence within and between images.

    Args:
        settings: Rounds, the thresholds alpha and beta (resolved), the weight of the unlabelled loss.
        **others: As in `PromptMethod`.
    """

    def __init__(
        self,
        prompted: PromptedClip,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        settings: CplSettings,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(prompted, zero_shot_CD, images, batch_size=batch_size, rounds=settings.rounds, seed=seed)
        if images is not None and "auto" in (settings.alpha, settings.beta):
            raise ValueError("cpl.alpha and cpl.beta are resolved before the method is built")
        self.settings = settings

    def begin_round(self, round_: int, probability_UC: Callable[[], Tensor]) -> list[Stream]:
        """Finds candidates in the last round's probabilities, selects images, then draws the prompt anew."""
        probability_UK = self.candidate_probability(round_, probability_UC)
        self.restart(round_)
        candidate_UK = cpl_candidates(probability_UK, float(self.settings.alpha), float(self.settings.beta))
        count = growing_count(round_, self.rounds, *probability_UK.shape)
        selection = cpl_select(probability_UK, candidate_UK, count)
        # The zero-shot probabilities of the first round are worth learning from as they are, later sets alone count.
        target_MK = cpl_targets(probability_UK, candidate_UK, selection.row_M, soft=round_ == 1)
        self.pseudo_labels = self.pseudo_labels_of(selection, probability_UK, target_MK)
        return self._streams(self.pseudo_labels)

    def _streams(self, pseudo_labels: PseudoLabels) -> list[Stream]:
        index_M, images = pseudo_labels.index_M, self.images
        pseudo = Stream(name=PSEUDO, index_M=index_M, target_MC=pseudo_labels.target_MC, batch_size=self.batch_size)
        if not len(images.labelled_L):
            return [pseudo]
        least, most = _LABELLED_BATCH
        labelled = Stream(
            name=LABELLED,
            index_M=images.labelled_L.cpu(),
            target_MC=one_hot(images.label_L.cpu(), images.n_classes),
            batch_size=min(max(self.batch_size * len(images.labelled_L) // len(index_M), least), most),
        )
        return [pseudo, labelled]

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """CE of the labelled images (SSL, TRZSL) plus lambda times the candidate loss."""
        pseudo, labelled = batches[PSEUDO], batches.get(LABELLED)
        if labelled is None:
            return self.settings.unlabelled_weight * candidate_loss(self.logits(pseudo.image_B), pseudo.target_BC)
        logits_BC = self.logits(torch.cat([pseudo.image_B, labelled.image_B]))  # class texts are encoded once
        n_pseudo = len(pseudo.image_B)
        unlabelled_loss = candidate_loss(logits_BC[:n_pseudo], pseudo.target_BC)
        labelled_loss = F.cross_entropy(logits_BC[n_pseudo:], labelled.target_BC)
        return labelled_loss + self.settings.unlabelled_weight * unlabelled_loss
