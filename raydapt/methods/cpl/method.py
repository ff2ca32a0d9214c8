"""CPL: candidate pseudo-labels (Zhang et al., ICML 2024).

Legend: U unlabelled, L labelled, B batch, C classes, K candidate classes, M selected.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from raydapt.methods.air.part import AirPart
from raydapt.methods.contract import Batch, PseudoLabels, Stream, TrainingImages, one_hot
from raydapt.methods.cpl.rules import cpl_candidates, cpl_select, cpl_targets
from raydapt.methods.cpl.settings import CplSettings
from raydapt.methods.prompting.losses import candidate_loss
from raydapt.methods.prompting.method import PromptMethod
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks
from raydapt.methods.prompting.pseudo_labels import growing_count
from raydapt.models.residual_prompt import Prompted

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
        prompted: Prompted,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        settings: CplSettings,
        batch_size: int,
        seed: int,
        air: AirPart | None = None,
    ) -> None:
        rounds = settings.rounds
        super().__init__(prompted, zero_shot_CD, images, batch_size=batch_size, rounds=rounds, seed=seed, air=air)
        if images is not None and "auto" in (settings.alpha, settings.beta):
            raise ValueError("cpl.alpha and cpl.beta are resolved before the method is built")
        self.settings = settings

    def select(self, round_: int, probability_UK: ProbabilityBlocks) -> PseudoLabels:
        """Finds candidate sets and selects K_n images per class."""
        prior, beta, n_candidates = self.prior_of_candidates, float(self.settings.beta), probability_UK.shape[1]
        candidates = cpl_candidates(
            probability_UK, float(self.settings.alpha), prior.upper_quantiles(beta).numpy() if prior.known else beta
        )
        count = growing_count(round_, self.rounds, *probability_UK.shape)
        selection = cpl_select(candidates, prior.places(count), n_candidates)
        # The zero-shot probabilities of the first round are worth learning from as they are, later sets alone count.
        return self.pseudo_labels_of(
            selection, cpl_targets(candidates, selection.row_M, n_candidates, soft=round_ == 1)
        )

    def streams(self, pseudo_labels: PseudoLabels) -> list[Stream]:
        """Selected images and, in proportion, the labelled ones."""
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

    def loss(self, logits: Mapping[str, Tensor], batches: Mapping[str, Batch]) -> Tensor:
        """CE of the labelled images (SSL, TRZSL) plus lambda times the candidate loss."""
        unlabelled_loss = candidate_loss(logits[PSEUDO], batches[PSEUDO].target_BC)
        if LABELLED not in batches:
            return self.settings.unlabelled_weight * unlabelled_loss
        labelled_loss = F.cross_entropy(logits[LABELLED], batches[LABELLED].target_BC)
        return labelled_loss + self.settings.unlabelled_weight * unlabelled_loss
