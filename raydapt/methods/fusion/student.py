"""The student of fusion: class embeddings and a bias that learn two soft labels of every image.

Legend: N images, C classes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydapt.methods.even_sample import even_sample
from raydapt.methods.transduct.rules import Head

_MOST_ELEMENTS = 2**26
"""Images x classes that the student learns from at most; of more images an even sample."""
_MOST_STEPS = 60
_BIAS_STRENGTH = 0.01


def student_loss(
    weight_CD: Tensor,
    bias_C: Tensor,
    feature_ND: Tensor,
    target_NC: Tensor,
    text_CD: Tensor,
    *,
    scale: float,
    hold: float,
) -> Tensor:
    """-1/N sum_ic q_ic log softmax(s w_c . f_i + b_c) + kappa s / C |W - T|^2 + 0.01 / C |b|^2.

    Ours: cross-entropy with soft labels q (LatteCLIP's dual pseudo-labels, as one distribution), and the distance to
    the texts times the logit scale.

    Args:
        weight_CD: Class embeddings W.
        bias_C: b.
        feature_ND: L2-normalised features.
        target_NC: Soft labels q.
        text_CD: L2-normalised class embeddings T of the frozen model.
        scale: Logit scale s.
        hold: Kappa.
    """
    n_classes = len(text_CD)
    logit_NC = scale * feature_ND @ weight_CD.T + bias_C
    cross_entropy = -(target_NC * logit_NC.log_softmax(dim=1)).sum(dim=1).mean()
    away = hold * scale * (weight_CD - text_CD).square().sum() / n_classes
    return cross_entropy + away + _BIAS_STRENGTH * bias_C.square().sum() / n_classes


def learn_student(feature_ND: Tensor, target_NC: Tensor, text_CD: Tensor, *, scale: float, hold: float) -> Head:
    """The minimum of `student_loss`, found by L-BFGS, as what is added to the zero-shot logits.

    The loss is convex: there is nothing to choose but kappa, and no seed.

    Args:
        feature_ND: float32 L2-normalised features.
        target_NC: Soft labels.
        text_CD: L2-normalised class embeddings.
        scale: Logit scale.
        hold: Kappa.
    """
    weight_CD, bias_C = text_CD.clone().requires_grad_(), text_CD.new_zeros(len(text_CD)).requires_grad_()
    search = torch.optim.LBFGS([weight_CD, bias_C], max_iter=_MOST_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        with torch.enable_grad():
            loss = student_loss(weight_CD, bias_C, feature_ND, target_NC, text_CD, scale=scale, hold=hold)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return Head(scale * (weight_CD.detach() - text_CD), bias_C.detach())


def taught_rows(n_images: int, n_classes: int) -> Tensor:
    """int64 rows that the student learns from: all, or an even sample of as many as fit."""
    return even_sample(torch.arange(n_images), max(1, _MOST_ELEMENTS // n_classes))
