"""FPL: few pseudo-labels, the most confident images of each class, once (Menghini et al., NeurIPS 2023).

Legend: U unlabelled, C classes, K candidate classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from raydapt.methods.contract import Stream, TrainingImages
from raydapt.methods.hard_labels import HardLabelMethod
from raydapt.methods.prompt_method import hard_targets
from raydapt.methods.pseudo_labels import top_k_per_class
from raydapt.models.prompts import PromptedClip


class Fpl(HardLabelMethod):
    """The `shots` images of highest zero-shot probability of each class are its pseudo-labels; one round.

    Args:
        shots: Images per class.
        **others: As in `PromptMethod`.
    """

    def __init__(
        self,
        prompted: PromptedClip,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        shots: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(prompted, zero_shot_CD, images, batch_size=batch_size, rounds=1, seed=seed)
        self.shots = shots

    def begin_round(self, round_: int, probability_UC: Callable[[], Tensor]) -> list[Stream]:
        """Selects from the zero-shot probabilities and draws the prompt."""
        probability_UK = self.candidate_probability(round_, probability_UC)
        self.restart(round_)
        selection = top_k_per_class(probability_UK, self.shots)
        target_MK = hard_targets(selection, probability_UK.shape[1])
        self.pseudo_labels = self.pseudo_labels_of(selection, probability_UK, target_MK)
        return [self.pooled_stream(self.pseudo_labels)]
