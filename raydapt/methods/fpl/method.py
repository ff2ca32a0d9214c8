"""FPL: few pseudo-labels, the most confident images of each class, once (Menghini et al., NeurIPS 2023).

Legend: U unlabelled, C classes, K candidate classes.
"""

from __future__ import annotations

from torch import Tensor

from raydapt.methods.air.part import AirPart
from raydapt.methods.contract import PseudoLabels, TrainingImages
from raydapt.methods.prompting.hard_labels import HardLabelMethod
from raydapt.methods.prompting.method import hard_targets
from raydapt.methods.prompting.pseudo_labels import Probabilities, top_k_per_class
from raydapt.models.residual_prompt import Prompted


class Fpl(HardLabelMethod):
    """The `shots` images of highest zero-shot probability of each class are its pseudo-labels; one round.

    Args:
        shots: Images per class; as many on average where the class prior is known.
        **others: As in `PromptMethod`.
    """

    def __init__(
        self,
        prompted: Prompted,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        shots: int,
        batch_size: int,
        seed: int,
        air: AirPart | None = None,
    ) -> None:
        super().__init__(prompted, zero_shot_CD, images, batch_size=batch_size, rounds=1, seed=seed, air=air)
        self.shots = shots

    def select(self, round_: int, probability_UK: Probabilities) -> PseudoLabels:
        """The most confident images of each class."""
        selection = top_k_per_class(probability_UK, self.prior_of_candidates.places(self.shots))
        return self.pseudo_labels_of(selection, probability_UK, hard_targets(selection, probability_UK.shape[1]))
