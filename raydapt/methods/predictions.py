"""What a method answers for many images.

Legend: N rows, T images to predict, B batch, C classes, D width, S side in px.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydapt.artefacts.inputs import Images
from raydapt.methods.contract import Method


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The best class of each of T images, its probability, and how informative the answers are together."""

    class_T: Tensor
    confidence_T: Tensor
    mutual_information: float
    """Between image and predicted class, as a share of log C: 0 (all the same, or all undecided) to 1."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A method with the images as it takes them."""

    method: Method
    """On the device that it answers on."""
    image_N: Images
    """Features [N, D] or uint8 pixels [N, 3, S, S], a row of all images each."""

    @torch.no_grad()
    def probabilities(self, row_B: Tensor, device: torch.device) -> Tensor:
        """float64 [B, C] on the CPU, of the images of these rows."""
        return self.method.eval().logits(self.image_N[row_B].to(device)).double().softmax(-1).cpu()


def predict_classes(
    method: Method, image_N: Images, row_T: Tensor, *, batch_size: int, device: torch.device
) -> Predictions:
    """Predicts images by their rows; see `predict_mean`."""
    return predict_mean([Classifier(method=method, image_N=image_N)], row_T, batch_size=batch_size, device=device)


def predict_mean(
    classifiers: Sequence[Classifier], row_T: Tensor, *, batch_size: int, device: torch.device
) -> Predictions:
    """Predicts images by the mean of several classifiers' probabilities; one batch of these is held at a time.

    The mutual information is H(mean p) - mean H(p) over the images (Bridle, Heading & MacKay, NIPS 1991).

    Args:
        classifiers: One or more, over the same images and classes.
        row_T: int64 rows to predict, at least one.
        batch_size: Images at a time.
        device: Of the methods.
    """
    class_T, confidence_T, start = torch.empty(len(row_T), dtype=torch.int64), torch.empty(len(row_T)), 0
    sum_C, entropy = torch.zeros(()), 0.0
    for row_B in torch.split(row_T, batch_size):
        probability_BC = sum(classifier.probabilities(row_B, device) for classifier in classifiers) / len(classifiers)
        assert isinstance(probability_BC, Tensor)
        best = probability_BC.max(-1)
        class_T[start : start + len(row_B)], confidence_T[start : start + len(row_B)] = best.indices, best.values
        start += len(row_B)
        sum_C = sum_C + probability_BC.sum(0)
        entropy += float(_entropy(probability_BC).sum())
    information = float(_entropy(sum_C / len(row_T))) - entropy / len(row_T)
    return Predictions(
        class_T=class_T,
        confidence_T=confidence_T,
        mutual_information=information / math.log(len(sum_C)),
    )


def _entropy(probability: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probability).sum(-1)
    return entropy
