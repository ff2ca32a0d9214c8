"""AiR's arithmetic: images made of the classes as a classifier, and what it and the text classifier say together.

The shape of all formulas is from the abstract and a third party's note; the details are a reconstruction.

Legend: M synthetic images, U unlabelled, C classes, K candidate classes, D width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.methods.prompting.probability_blocks import Probabilities

Prototypes = Literal["nearest", "all", "mean"]
_BISECTIONS = 60


def recognised(score_MC: Tensor, class_M: Tensor, top: int) -> Tensor:
    """Which images have their own class among the `top` best scores of their row, bool [M] (cleaning; reconstruction).

    A class of which no image would be left keeps all of its images: an empty class could never be a pseudo-label.
    """
    own_M1 = score_MC.gather(1, class_M[:, None])
    kept_M = (score_MC > own_M1).sum(dim=1) < top
    n_kept_C = torch.zeros(score_MC.shape[1], dtype=torch.int64).index_add_(0, class_M, kept_M.long())
    return kept_M | (n_kept_C[class_M] == 0)


def centred(feature_MD: Tensor, mean_D: Tensor) -> Tensor:
    """Features less the mean of their kind, L2-normalised again.

    Synthetic and real images differ by an offset that says how they were made and nothing of their classes, but lies
    nearer to some classes than to others. Taking both means away removes it, if both kinds show the classes alike.
    """
    return F.normalize(feature_MD - mean_D, dim=1)


def class_weights(
    feature_MD: Tensor, class_M: Tensor, n_classes: int, *, prototypes: Prototypes, nearest: int
) -> Tensor:
    """The classifier [C, D] whose product with an image v is s_c = (1/K) sum_k v . g_ck (reconstruction, spec).

    The mean similarity to K images is the similarity to their mean, so C vectors stand for C K images.

    Args:
        feature_MD: L2-normalised features g of the synthetic images.
        class_M: Their classes.
        n_classes: C; every class needs an image.
        prototypes: `nearest`: the `nearest` images of a class that are closest to the mean of all of them; `all`: all
            of them; `mean`: one prototype, the mean, L2-normalised.
        nearest: K; a class with fewer images uses them all.

    Raises:
        ValueError: If a class has no image.
    """
    weights = []
    for c in range(n_classes):
        feature_KD = feature_MD[class_M == c]
        if not len(feature_KD):
            raise ValueError(f"class {c} has no synthetic image")
        mean_D = feature_KD.mean(dim=0)
        if prototypes == "nearest":
            order_K = torch.argsort(feature_KD @ mean_D, descending=True, stable=True)
            mean_D = feature_KD[order_K[:nearest]].mean(dim=0)
        weights.append(F.normalize(mean_D, dim=0) if prototypes == "mean" else mean_D)
    return torch.stack(weights)


def fuse(text_UK: Probabilities, image_UK: Probabilities, weight: float) -> Probabilities:
    """p* = norm(p + lambda p^): what the text classifier says and, `weight` times, what the synthetic images say."""
    sum_UK = text_UK + np.float32(weight) * image_UK
    fused_UK: Probabilities = sum_UK / sum_UK.sum(axis=1, keepdims=True)
    return fused_UK


def matching_scale(score_UK: Tensor, confidence: float, *, highest: float = 1e4) -> float:
    """The scale s > 0 at which the mean largest probability of softmax(s score) is `confidence`, by bisection.

    Similarities between images spread otherwise than those between images and texts: with one scale for both, the more
    spread ones are the surer ones, whether or not they are right. No label is needed to give both the same mean say.
    """
    low, high = 0.0, highest
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        sure = float((middle * score_UK).softmax(dim=1).amax(dim=1).mean())
        low, high = (middle, high) if sure < confidence else (low, middle)
    return high
