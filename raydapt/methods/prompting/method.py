"""What the methods share that learn a prompt from pseudo-labels in rounds.

Legend: N training images, U unlabelled, L labelled, M selected, C classes, K candidate classes, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from raydapt.errors import UserError
from raydapt.methods.air.part import SYNTHETIC, AirPart
from raydapt.methods.class_prior import ClassPrior, class_prior
from raydapt.methods.contract import Batch, Method, OverImages, PseudoLabels, Stream, TrainingImages
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks, Rows, softmax_blocks
from raydapt.methods.prompting.pseudo_labels import Selection
from raydapt.models.residual_prompt import Prompted


class PromptMethod(Method):
    """A prompted CLIP that starts every round from a fresh prompt and new pseudo-labels.

    Args:
        prompted: The model that is learned.
        zero_shot_CD: Class embeddings of the plain prompt, which label the first round.
        images: What may be learned from; None for a method that is only to predict.
        batch_size: Images per optimiser step.
        rounds: Rounds of learning.
        seed: Of the initial prompts of all rounds.
        air: What AiR adds: a second judge of the images, and synthetic images to learn from; None for the plain method.

    Attributes:
        prior: How often classes occur, unknown until somebody sets it.
    """

    def __init__(
        self,
        prompted: Prompted,
        zero_shot_CD: Tensor,
        images: TrainingImages | None,
        *,
        batch_size: int,
        rounds: int,
        seed: int,
        air: AirPart | None = None,
    ) -> None:
        super().__init__()
        self.prompted = prompted
        self.input_kind = "pixels" if prompted.uses_pixels else "features"
        # Rounds that depend on no pseudo-labels are all the same.
        self.rounds = 1 if air is not None and air.settings.synthetic_only else rounds
        self.batch_size, self.seed = batch_size, seed
        self._zero_shot_CD = zero_shot_CD.cpu()
        self.prior = class_prior("unknown", [""] * len(zero_shot_CD))
        self._images = images
        self.air = air
        self._guesses: Mapping[str, Tensor] = {}

    @property
    def images(self) -> TrainingImages:
        """What may be learned from."""
        if self._images is None:
            raise RuntimeError("The method was built without training images, to predict only.")
        return self._images

    def logits(self, image_B: Tensor) -> Tensor:
        """Logits [B, C] of the prompted model.

        A method that is only to predict adds, where `air.fusion_at_test` says so, what the synthetic images say.
        """
        logits_BC: Tensor = self.prompted(image_B)
        if self._images is None and self.air is not None and self.air.settings.fusion_at_test:
            return self.air.fused_logits(self.prompted, image_B, logits_BC)
        return logits_BC

    def logits_of(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """The prompted model's logits of every stream's batch; the class texts are encoded once for all of them."""
        logits_BC: Tensor = self.prompted(torch.cat([batch.image_B for batch in batches.values()]))
        parts = torch.split(logits_BC, [len(batch.image_B) for batch in batches.values()])
        return dict(zip(batches, parts, strict=True))

    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        """Selects from the last round's probabilities, then draws the prompt anew."""
        if self.air is not None and self.air.settings.synthetic_only:
            if self.air.settings.fusion_at_test:  # which goes by what the judgement finds: the images' mean, the scale
                self.candidate_probability(round_, over_unlabelled)
            self.restart(round_)
            return self._synthetic_streams(self.air)
        self.pseudo_labels = None  # those of the last round
        probability_UK = self.candidate_probability(round_, over_unlabelled)
        self.restart(round_)
        selected = self.select(round_, probability_UK)
        self.pseudo_labels = replace(selected, guesses=self._guesses)
        streams = self.streams(selected)
        return streams if self.air is None else [*streams, *self._synthetic_streams(self.air)]

    def _synthetic_streams(self, air: AirPart) -> list[Stream]:
        return air.streams(self.batch_size, self.images.candidate_classes)

    @property
    def prior_of_candidates(self) -> ClassPrior:
        """How often each of the K candidate classes occurs among the unlabelled images, as far as anybody said."""
        return self.prior.among(self.images.candidate_classes)

    @abstractmethod
    def select(self, round_: int, probability_UK: ProbabilityBlocks) -> PseudoLabels:
        """The pseudo-labels of a round, from probabilities over the candidate classes."""

    @abstractmethod
    def streams(self, pseudo_labels: PseudoLabels) -> list[Stream]:
        """What a round learns from: the pseudo-labelled images, and the labelled ones where there are some."""

    @abstractmethod
    def loss(self, logits: Mapping[str, Tensor], batches: Mapping[str, Batch]) -> Tensor:
        """The loss of the batches of `streams`."""

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """The method's own loss, plus AiR's of the synthetic images where it has a part."""
        logits = self.logits_of(batches)
        if self.air is None or SYNTHETIC not in batches:
            return self.loss(logits, batches)
        synthetic_loss = self.air.loss(logits[SYNTHETIC], batches[SYNTHETIC])
        return synthetic_loss if self.air.settings.synthetic_only else self.loss(logits, batches) + synthetic_loss

    def restart(self, round_: int) -> None:
        """Draws the prompt of a round; it depends on the seed and the round alone."""
        self.prompted.reset(int(np.random.SeedSequence((self.seed, round_)).generate_state(1)[0]))

    def candidate_probability(self, round_: int, over_unlabelled: OverImages) -> ProbabilityBlocks:
        """Q [U, K] over the candidate classes: zero-shot in the first round, of the prompted model later."""
        images = self.images
        if not len(images.unlabelled_U):
            raise UserError(
                "There are no unlabelled training images to learn from: check data.train_splits and data.shots."
            )
        # The frozen features are right until something visual is learned; then they are made anew.
        encoder = self.prompted if self.prompted.uses_pixels and round_ > 1 else None
        features_of: Callable[[Rows], Tensor] = images.of_unlabelled(images.feature_ND).__getitem__
        if encoder is not None:
            features_of = over_unlabelled(encoder.image_features).__getitem__
        class_CD = self._zero_shot_CD if round_ == 1 else self.class_embeddings()
        text_UK = softmax_blocks(
            len(images.unlabelled_U), features_of, class_CD, self.prompted.clip.logit_scale, images.candidate_classes
        )
        if self.air is None or not self.air.judges:
            return text_UK
        both_UK, self._guesses = self.air.judge(round_, text_UK, images, features_of, encoder)
        return both_UK

    @torch.no_grad()
    def class_embeddings(self) -> Tensor:
        """L2-normalised class embeddings float32 [C, D] of the prompted model as it is now."""
        was_training = self.training
        self.eval()
        class_CD = self.prompted.class_embeddings().to(torch.float32)
        self.train(was_training)
        return class_CD

    def pseudo_labels_of(self, selection: Selection, target_MK: csr_array) -> PseudoLabels:
        """A selection in terms of the training images and of all classes."""
        if not len(selection.row_M):
            raise UserError(
                f"Not one of {len(self.images.unlabelled_U)} unlabelled images is a candidate of any class: lower "
                "cpl.beta, raise cpl.alpha or give more images."
            )
        candidates_K, row_M = self.images.candidate_classes.cpu(), torch.from_numpy(selection.row_M)
        class_E, shape = candidates_K.numpy()[target_MK.indices], (len(row_M), self.images.n_classes)
        target_MC = csr_array((target_MK.data, class_E, target_MK.indptr), shape=shape)
        target_MC.sort_indices()
        return PseudoLabels(
            index_M=self.images.unlabelled_U.cpu()[row_M],
            target_MC=target_MC,
            confidence_M=torch.from_numpy(selection.confidence_M),
            class_M=candidates_K[torch.from_numpy(selection.class_M)],
            waiting=selection.waiting,
            dropped=selection.dropped,
        )
