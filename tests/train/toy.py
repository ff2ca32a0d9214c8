"""A method small enough to be followed by hand, for the tests of the training loop."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raydapt.methods.contract import Batch, Method, OverImages, PseudoLabels, Stream, TrainingImages, one_hot


class Toy(Method):
    """A linear classifier that learns, round after round, what it predicted in the round before."""

    input_kind = "features"

    def __init__(self, images: TrainingImages, *, rounds: int = 2, batch_size: int = 8) -> None:
        super().__init__()
        self.rounds, self.batch_size, self.images = rounds, batch_size, images
        generator = torch.Generator().manual_seed(7)
        self.weight_CD = nn.Parameter(torch.randn(images.n_classes, images.feature_ND.shape[1], generator=generator))
        self.entered: list[int] = []
        self.epochs: list[tuple[int, int]] = []

    def logits(self, image_B: Tensor) -> Tensor:
        return image_B @ self.weight_CD.T

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        batch = batches["pseudo"]
        # Noise shows whether a resumed run draws the same random numbers.
        noisy_BD = batch.image_B + 0.1 * torch.randn_like(batch.image_B)
        return -(batch.target_BC * self.logits(noisy_BD).log_softmax(-1)).sum(-1).mean()

    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        probability = over_unlabelled(lambda image_B: self.logits(image_B).softmax(-1))
        confidence_U, class_U = probability.max(-1)
        index_U = self.images.unlabelled_U
        target_UC = one_hot(class_U, self.images.n_classes)
        self.pseudo_labels = PseudoLabels(
            index_M=index_U, target_MC=target_UC, confidence_M=confidence_U, class_M=class_U
        )
        with torch.no_grad():
            self.weight_CD.copy_(torch.randn_like(self.weight_CD))
        return [Stream(name="pseudo", index_M=index_U, target_MC=target_UC, batch_size=self.batch_size)]

    def enter_round(self, round_: int, streams: Sequence[Stream]) -> None:
        self.entered.append(round_)

    def begin_epoch(self, round_: int, epoch: int, over_images: OverImages) -> None:
        self.epochs.append((round_, epoch))


def toy_images(n: int = 40, width: int = 5, classes: int = 3) -> TrainingImages:
    generator = torch.Generator().manual_seed(3)
    return TrainingImages(
        feature_ND=torch.randn(n, width, generator=generator),
        n_classes=classes,
        labelled_L=torch.empty(0, dtype=torch.int64),
        label_L=torch.empty(0, dtype=torch.int64),
        unlabelled_U=torch.arange(n),
        candidate_classes=torch.arange(classes),
    )
