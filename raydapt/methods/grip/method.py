"""GRIP: growing pseudo-labels over rounds (Menghini et al., NeurIPS 2023).

Legend: U unlabelled, C classes, K candidate classes.
"""

from __future__ import annotations

from torch import Tensor

from raydapt.methods.air.part import AirPart
from raydapt.methods.contract import PseudoLabels, TrainingImages
from raydapt.methods.grip.settings import GripSettings
from raydapt.methods.prompting.hard_labels import HardLabelMethod, Weighting
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks
from raydapt.methods.prompting.pseudo_labels import growing_count, leader_board, published_leader_board
from raydapt.methods.targets import one_hot_rows
from raydapt.models.residual_prompt import Prompted


class Grip(HardLabelMethod):
    """Each round labels n |U| / (rounds K) images per class with the last round's model, on leader boards.

    Where the class prior is known, a board has as many places as the class has a share in n |U| / rounds.

    Args:
        settings: Rounds, the kind of leader board, the weight of labelled images.
        **others: As in `PromptMethod`.
    """

    def __init__(
        self,
        prompted: Prompted,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        settings: GripSettings,
        batch_size: int,
        seed: int,
        air: AirPart | None = None,
    ) -> None:
        weighting = Weighting(labelled=settings.labelled_weight, trzsl=settings.trzsl_weight)
        super().__init__(
            prompted,
            zero_shot_CD,
            images,
            batch_size=batch_size,
            rounds=settings.rounds,
            seed=seed,
            weighting=weighting,
            train_share=settings.train_share,
            air=air,
        )
        self.board = leader_board if settings.board == "clean" else published_leader_board

    def select(self, round_: int, probability_UK: ProbabilityBlocks) -> PseudoLabels:
        """Fills the leader boards."""
        count = growing_count(round_, self.rounds, *probability_UK.shape)
        selection = self.board(probability_UK, self.prior_of_candidates.places(count))
        return self.pseudo_labels_of(selection, one_hot_rows(selection.class_M, probability_UK.shape[1]))
