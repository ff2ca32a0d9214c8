"""The rules of LatteCLIP as pure functions: text weights, mixture, targets, loss, prototypes.

The paper is arXiv 2410.08211; the formulas are those of its public code (``train_one_epoch_v2`` of LatteCLIP).

Legend: B batch, C classes, D width, K text sources (class template, image caption, group caption).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_WEIGHT = 1e-6


@torch.no_grad()
def text_weight(text_BD: Tensor, prototype_CD: Tensor) -> Tensor:
    """How clearly a text belongs to one class, [B], positive (rule 4): its two highest cosines apart, plus 1e-6.

    Args:
        text_BD: Normalised text features, any leading shape.
        prototype_CD: The prototypes at the epoch's start, normalised.
    """
    best = (text_BD @ prototype_CD.T).topk(min(2, len(prototype_CD)), dim=-1).values
    return best[..., 0] - best[..., -1] + _LEAST_WEIGHT


def mixture(text_KBD: Tensor, weight_KB: Tensor, fallback_BD: Tensor) -> Tensor:
    """The weighted mean [B, D] of the texts of every image (rule 5); where no text has a weight, the fallback."""
    total_B1 = weight_KB.sum(0)[:, None]
    mean_BD = (weight_KB[..., None] * text_KBD).sum(0) / total_B1.clamp(min=_LEAST_WEIGHT / 2)
    return torch.where(total_B1 > 0, mean_BD, fallback_BD)


def legacy_mixture(text_KBD: Tensor, weight_KB: Tensor, fallback_BD: Tensor, template_weight_B: Tensor) -> Tensor:
    """The mixture as the public code of arXiv 2410.08211 computes it, which runs where B = D alone.

    The first source's weights lie along the feature axis instead of the batch, and are those of the other branch for
    the zero-shot one, while the division uses the branch's own.

    Args:
        text_KBD: Texts, that of the template first.
        weight_KB: The branch's own weights.
        fallback_BD: As in `mixture`.
        template_weight_B: The template's weights in the fine-tuned branch.
    """
    total_B1 = weight_KB.sum(0)[:, None]
    mixed_BD = template_weight_B * text_KBD[0] + (weight_KB[1:, :, None] * text_KBD[1:]).sum(0)
    mean_BD = mixed_BD / total_B1.clamp(min=_LEAST_WEIGHT / 2)
    return torch.where(total_B1 > 0, mean_BD, fallback_BD)


def targets(prototype_BD: Tensor, mixture_BD: Tensor, alpha: float) -> Tensor:
    """The targets tau = p + alpha (m - p), not normalised (rule 6)."""
    return prototype_BD + alpha * (mixture_BD - prototype_BD)


def contrastive_loss(image_BD: Tensor, target_BD: Tensor, scale: Tensor | float) -> Tensor:
    """Both directions of in-batch contrast (rule 7): images of one class are negatives of each other."""
    logits_BB = scale * image_BD @ target_BD.T
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2


def moved_prototypes(prototype_CD: Tensor, sum_CD: Tensor, count_C: Tensor) -> Tensor:
    """norm(mean of a class's targets), for the classes that a batch had (rule 9); the others stay."""
    mean_CD = sum_CD / count_C[:, None].clamp(min=1)
    return torch.where(count_C[:, None] > 0, F.normalize(mean_CD, dim=1), prototype_CD)
