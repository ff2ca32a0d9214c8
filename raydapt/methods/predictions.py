"""What a method answers for many images.

Legend: N rows, T images to predict, B batch, C classes, D width, S side in px.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raydapt.methods.contract import Method


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The best class of each of T images, its probability, and how informative the answers are together."""

    class_T: Tensor
    confidence_T: Tensor
    mutual_information: float
    """Between image and predicted class, as a share of log C: 0 (all the same, or all undecided) to 1."""


@torch.no_grad()
def predict_classes(
    method: Method, image_N: Tensor, row_T: Tensor, *, batch_size: int, device: torch.device
) -> Predictions:
    """Predicts images by their rows; no more than one batch of probabilities is ever held.

    The mutual information is H(mean p) - mean H(p) over the images (Bridle, Heading & MacKay, NIPS 1991).

    Args:
        method: Any method, on `device`.
        image_N: Features [N, D] or uint8 pixels [N, 3, S, S], as the method takes them.
        row_T: int64 rows to predict, at least one.
        batch_size: Images at a time.
        device: Of the method.
    """
    method.eval()
    classes, confidences = [], []
    sum_C, entropy = torch.zeros(()), 0.0
    for row_B in torch.split(row_T, batch_size):
        probability_BC = method.logits(image_N[row_B].to(device)).double().softmax(-1).cpu()
        best = probability_BC.max(-1)
        classes.append(best.indices)
        confidences.append(best.values.float())
        sum_C = sum_C + probability_BC.sum(0)
        entropy += float(_entropy(probability_BC).sum())
    information = float(_entropy(sum_C / len(row_T))) - entropy / len(row_T)
    return Predictions(
        class_T=torch.cat(classes),
        confidence_T=torch.cat(confidences),
        mutual_information=information / math.log(len(sum_C)),
    )


def _entropy(probability: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probability).sum(-1)
    return entropy
