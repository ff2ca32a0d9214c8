"""What the training loop and a method say to each other.

Legend: N training images, U unlabelled, L labelled, M images of a stream, or synthetic ones, B batch, C classes,
D width, S side in px.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from raydapt.artefacts.captions import Captions
from raydapt.artefacts.inputs import InputKind, take_images
from raydapt.artefacts.partial_labels import PartialLabels
from raydapt.artefacts.pixels import PixelRows
from raydapt.artefacts.rows import Features, rows_of
from raydapt.artefacts.synthetic_images import SyntheticImages
from raydapt.methods.targets import Targets, sparse

ImageSource = Literal["train", "synthetic"]
"""Which images a stream draws from: the images that are adapted to, or synthetic ones."""


OverImages = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""Applies a function of a batch of images (as the method `input_kind` them) to all training images, or the unlabelled
ones, batch by batch in evaluation mode without gradients, each worker to its part; every worker gets all results
[N, ...], on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Images and targets that are drawn from in batches, reshuffled every time they have been gone through."""

    name: str
    """The key of its batches in `Method.forward`."""
    index_M: Tensor
    """int64 indices into the training images."""
    target_MC: Targets
    """One-hot, a distribution, or 0/1 sets of candidates, also sparse; batches are float32 and dense."""
    batch_size: int
    """Images per optimiser step over all workers."""
    source: ImageSource = "train"
    """The images that the indices are of."""


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """All that adaptation may see. No label exists here but those of the labelled images of SSL and TRZSL."""

    feature_ND: Features
    """Read as float32, on the CPU: L2-normalised features of the frozen CLIP."""
    n_classes: int
    labelled_L: Tensor
    """int64 indices of the labelled images; empty in UL."""
    label_L: Tensor
    """int64 class of each labelled image."""
    unlabelled_U: Tensor
    """int64 indices of the images that pseudo-labels are for."""
    candidate_classes: Tensor
    """int64 classes that a pseudo-label may name: all of them, in TRZSL the unseen ones."""
    pixels: PixelRows | None = None
    """uint8 pixels of the training images; None when the method reads features."""
    synthetic: SyntheticImages | None = None
    """Made images, for the methods that learn from them."""
    crop_NKD: Tensor | None = None
    """float32 CPU, the feature of every image and behind it those of its crops; None unless the method reads them."""
    partial: PartialLabels | None = None
    """What an annotation holds for possible, of all training images; for the methods that learn from it."""
    image_captions: Captions | None = None
    """A description of every training image; for the methods that read them."""
    answer_NC: Tensor | None = None
    """float32 CPU, the mean class probabilities that finished runs give the training images; for `transduct.over`."""
    second_ND: Features | None = None
    """Like `feature_ND`, of a second encoder (``model.second``), zeros for an image without one; None unless the method
    reads them and there are some."""
    group_captions: Captions | None = None
    """For every training image, the description of a group of images of its zero-shot class."""

    def take(self, index_B: Tensor, input_kind: InputKind, source: ImageSource = "train") -> Tensor:
        """Features [B, D], pixels [B, 3, S, S], or features with crops' [B, 1 + K, D], of int64 indices."""
        if input_kind == "crops":
            if self.crop_NKD is None:
                raise ValueError("The method reads crops, but there are none.")
            return self.crop_NKD[index_B]
        if source == "train":
            return take_images(self.feature_ND, self.pixels, index_B, input_kind)
        if self.synthetic is None:
            raise ValueError("A stream draws from synthetic images, but there are none.")
        return self.synthetic.take(index_B, input_kind)

    def pixel_rows(self, source: ImageSource) -> PixelRows | None:
        """The pixels of the images that a stream draws from; None when there are none."""
        if source == "train":
            return self.pixels
        return None if self.synthetic is None else self.synthetic.pixels

    def of_unlabelled(self, of_all: Features) -> Features:
        """The unlabelled images' rows [U, D] of an array [N, D] of all training images, without a copy of it."""
        return rows_of(of_all, self.unlabelled_U)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One worker's part of a batch of a stream, on its device."""

    image_B: Tensor
    """Features [B, D] float32, or pixels [B, 3, S, S] uint8, as the method `input_kind`."""
    target_BC: Tensor
    index_B: Tensor


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """The images that a round selected, what they were given, and how many it left."""

    index_M: Tensor
    """int64 indices into the training images; an image may stand here more than once (published leader board)."""
    target_MC: Targets
    """Targets over all classes as a stream has them; sparse where they are only kept (see `kept`)."""
    confidence_M: Tensor
    """Probability of the class that selected the image."""
    class_M: Tensor
    """int64 class that selected the image."""
    waiting: int = 0
    """Images with candidates that no class had room for."""
    dropped: int = 0
    """Images without any candidate."""
    guesses: Mapping[str, Tensor] = field(default_factory=dict)
    """Where several judge together, by name: the class, int64 [U], that each would give every unlabelled image."""

    @property
    def kept(self) -> PseudoLabels:
        """The same with sparse targets, for the history: most classes are no target of most images."""
        return replace(self, target_MC=sparse(self.target_MC))


class Method(nn.Module, ABC):
    """One way of adapting a CLIP-like model. It knows nothing of Ray, of device names or of files.

    The loop calls, for each round 1..`rounds`: `begin_round` once, then for every optimiser step `forward` with one
    batch of each stream, backward, and `after_step`. `logits` is called for evaluation and prediction at any time.
    """

    rounds: int = 0
    """Rounds of learning; 0 for a method that learns nothing."""
    input_kind: InputKind = "features"
    """What `forward` and `logits` take for an image."""
    pseudo_labels: PseudoLabels | None = None
    """What the current round selected; None before the first round."""

    @abstractmethod
    def logits(self, image_B: Tensor) -> Tensor:
        """Scores [B, C] of every class; their softmax is the predicted probability."""

    def read_features(self, image_B: Tensor) -> Tensor | None:
        """The frozen model's features [B, D] that `logits` compares with the classes; None: those of the whole images.

        The guard has zero-shot read them as well: it tells what was learned from what another view shows. It asks
        methods alone that take crops.
        """
        return None

    @abstractmethod
    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """The loss, a scalar, of one batch of every stream (of its name)."""

    @abstractmethod
    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        """Re-initialises what is learned anew in each round and chooses what the round learns from.

        Args:
            round_: 1-based.
            over_unlabelled: For what the current model says of `TrainingImages.unlabelled_U`, in that order; costly, so
                it is called only when needed, and before anything is re-initialised.

        Returns:
            The round's streams. The first defines the epoch, the others are cycled through.
        """

    def enter_round(self, round_: int, streams: Sequence[Stream]) -> None:
        """Called before a round's first step, and again when training resumes inside it.

        What depends on the streams alone (weights between losses) is set here, since it is in no checkpoint.
        """

    def begin_epoch(self, round_: int, epoch: int, over_images: OverImages) -> None:
        """Called before each epoch (both numbers 1-based), not again when training resumes inside it.

        Args:
            round_: As in `begin_round`.
            epoch: Of the round.
            over_images: For what the current model says of all training images.
        """

    def end_round(self, round_: int) -> None:
        """Called after a round's last step on every worker, and again when training resumes behind it."""

    def after_step(self) -> None:
        """Called after each optimiser step."""


def one_hot(label_M: Tensor, n_classes: int) -> Tensor:
    """float32 [M, C] one-hot targets of int64 labels."""
    return torch.nn.functional.one_hot(label_M, n_classes).to(torch.float32)
