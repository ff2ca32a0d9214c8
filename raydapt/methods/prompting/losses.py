"""Losses on logits.

Legend: B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def candidate_loss(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Mean of -log sum_c y_c p_c(x): CPL's loss ("cc") for candidate labels, soft or 0/1.

    Args:
        logits_BC: Logits; p is their softmax.
        target_BC: Non-negative candidate weights, at least one of them positive in every row.
    """
    log_target_BC = torch.where(target_BC > 0, target_BC.clamp_min(torch.finfo(torch.float32).tiny).log(), -torch.inf)
    log_p_BC = F.log_softmax(logits_BC.to(torch.float32), dim=1)
    return -torch.logsumexp(log_p_BC + log_target_BC, dim=1).mean()


def two_group_cross_entropy(
    logits_BC: Tensor, target_BC: Tensor, labelled_B: Tensor, *, labelled_weight: float, unlabelled_weight: float
) -> Tensor:
    """Cross-entropy of the labelled and of the pseudo-labelled images of a batch, each averaged, weighted and added.

    A group that the batch has no image of counts nothing.

    Args:
        logits_BC: Logits.
        target_BC: One-hot targets.
        labelled_B: bool, which images are labelled.
        labelled_weight: Factor of the labelled images' mean.
        unlabelled_weight: Factor of the pseudo-labelled images' mean.
    """
    loss_B = F.cross_entropy(logits_BC.to(torch.float32), target_BC, reduction="none")

    def group_mean(member_B: Tensor) -> Tensor:
        return (loss_B * member_B).sum() / member_B.sum().clamp_min(1)

    return labelled_weight * group_mean(labelled_B) + unlabelled_weight * group_mean(~labelled_B)
