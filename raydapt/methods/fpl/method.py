"""FPL: few pseudo-labels, the most confident images of each class, once (Menghini et al., NeurIPS 2023).

Legend: U unlabelled, C classes, K candidate classes.
"""

from __future__ import annotations

from torch import Tensor

from raydapt.methods.air.part import AirPart
from raydapt.methods.contract import PseudoLabels, TrainingImages
from raydapt.methods.fpl.settings import FplSettings
from raydapt.methods.prompting.hard_labels import HardLabelMethod, Weighting
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks
from raydapt.methods.prompting.pseudo_labels import published_leader_board, top_k_per_class
from raydapt.methods.targets import one_hot_rows
from raydapt.models.residual_prompt import Prompted


class Fpl(HardLabelMethod):
    """The `shots` images of highest zero-shot probability of each class are its pseudo-labels; one round.

    Args:
        settings: Images per class, as many on average where the class prior is known, and how they are chosen.
        **others: As in `PromptMethod`.
    """

    def __init__(
        self,
        prompted: Prompted,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        settings: FplSettings,
        batch_size: int,
        seed: int,
        air: AirPart | None = None,
    ) -> None:
        super().__init__(
            prompted,
            zero_shot_CD,
            images,
            batch_size=batch_size,
            rounds=1,
            seed=seed,
            weighting=Weighting(trzsl=settings.trzsl_weight),
            air=air,
        )
        self.settings = settings

    def select(self, round_: int, probability_UK: ProbabilityBlocks) -> PseudoLabels:
        """The most confident images of each class, or those on its leader board."""
        chosen = top_k_per_class if self.settings.selection == "top" else published_leader_board
        selection = chosen(probability_UK, self.prior_of_candidates.places(self.settings.shots))
        return self.pseudo_labels_of(selection, one_hot_rows(selection.class_M, probability_UK.shape[1]))
