"""What the methods share that learn a prompt from pseudo-labels in rounds.

Legend: N training images, U unlabelled, L labelled, M selected, C classes, K candidate classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raydapt.errors import UserError
from raydapt.methods.contract import Method, PseudoLabels, TrainingImages
from raydapt.methods.pseudo_labels import Probabilities, Selection, restrict_probability
from raydapt.models.prompts import PromptedClip

_ROWS_PER_CHUNK = 8192


class PromptMethod(Method):
    """A prompted CLIP that starts every round from a fresh prompt and new pseudo-labels.

    Args:
        prompted: The model that is learned.
        zero_shot_CD: Class embeddings of the plain prompt, which label the first round.
        images: What may be learned from; None for a method that is only to predict.
        batch_size: Images per optimiser step.
        rounds: Rounds of learning.
        seed: Of the initial prompts of all rounds.
    """

    def __init__(
        self,
        prompted: PromptedClip,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        batch_size: int,
        rounds: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.prompted = prompted
        self.reads = "pixels" if prompted.uses_pixels else "features"
        self.rounds, self.batch_size, self.seed = rounds, batch_size, seed
        self._zero_shot_CD = zero_shot_CD.cpu()
        self._images = images

    @property
    def images(self) -> TrainingImages:
        """What may be learned from."""
        if self._images is None:
            raise RuntimeError("The method was built without training images, to predict only.")
        return self._images

    def logits(self, image_B: Tensor) -> Tensor:
        """Logits [B, C] of the prompted model."""
        logits_BC: Tensor = self.prompted(image_B)
        return logits_BC

    def restart(self, round_: int) -> None:
        """Draws the prompt of a round; it depends on the seed and the round alone."""
        self.prompted.reset(int(np.random.SeedSequence((self.seed, round_)).generate_state(1)[0]))

    def candidate_probability(self, round_: int, probability_UC: Callable[[], Tensor]) -> Probabilities:
        """Q [U, K] over the candidate classes: zero-shot in the first round, of the prompted model later."""
        images = self.images
        if not len(images.unlabelled_U):
            raise UserError(
                "There are no unlabelled training images to learn from: check data.train_splits and data.shots."
            )
        if round_ == 1:
            feature_UD = images.feature_ND[images.unlabelled_U]
            all_UC = zero_shot_probability(feature_UD, self._zero_shot_CD, self.prompted.clip.logit_scale)
        else:
            all_UC = probability_UC()
        all_np = all_UC.detach().to("cpu", torch.float32).numpy()
        return restrict_probability(all_np, images.candidate_classes.cpu().numpy())

    def pseudo_labels_of(
        self, selection: Selection, probability_UK: Probabilities, target_MK: Probabilities
    ) -> PseudoLabels:
        """A selection in terms of the training images and of all classes."""
        if not len(selection.row_M):
            raise UserError(
                f"Not one of {len(probability_UK)} unlabelled images is a candidate of any class: lower cpl.beta, "
                "raise cpl.alpha or give more images."
            )
        candidates_K, row_M = self.images.candidate_classes.cpu(), torch.from_numpy(selection.row_M)
        target_MC = torch.zeros(len(row_M), self.images.n_classes)
        target_MC[:, candidates_K] = torch.from_numpy(target_MK)
        return PseudoLabels(
            index_M=self.images.unlabelled_U.cpu()[row_M],
            target_MC=target_MC,
            confidence_M=torch.from_numpy(probability_UK[selection.row_M, selection.class_M]),
            class_M=candidates_K[torch.from_numpy(selection.class_M)],
            waiting=selection.waiting,
            dropped=selection.dropped,
        )


def hard_targets(selection: Selection, n_candidates: int) -> Probabilities:
    """One-hot targets [M, K] of the classes that selected the images."""
    return np.eye(n_candidates, dtype=np.float32)[selection.class_M]


def zero_shot_probability(feature_UD: Tensor, class_CD: Tensor, logit_scale: float) -> Tensor:
    """Softmax [U, C] of the frozen features against class embeddings."""
    chunks = [
        (logit_scale * chunk_UD @ class_CD.T).softmax(dim=1)
        for chunk_UD in torch.split(feature_UD.to(class_CD), _ROWS_PER_CHUNK)
    ]
    return torch.cat(chunks)
