"""The losses of Co-Reg (Collaborative Consistency Regularization, AAAI 2025), as pure functions.

Every loss is a mean over the images of a batch, each with the form that its split asks for: so a batch that is cut
into workers' parts gives the same gradient. (The published code means over each split apart, in batches of equal size.)

Legend: B batch, C classes, D width of the projected space, K keys.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Contrast = Literal["noisy", "sup", "none"]
UnlabelledError = Literal["sum", "mean"]
_EPSILON = 1e-5


def warmup_loss(logits_BC: Tensor, candidate_BC: Tensor) -> Tensor:
    """-log of the candidates' probability, plus sum f log f (section 2.3, phase A; the entropy term is in the code).

    The first term is for images that have a class which is no candidate; the second, negative entropy, for all.
    """
    probability_BC = logits_BC.softmax(-1)
    informed_B = (candidate_BC < 1).any(1)
    partial_B = -((candidate_BC * probability_BC).sum(1) + _EPSILON).log()
    entropy_B = torch.special.entr(probability_BC).sum(1)
    loss: Tensor = (partial_B * informed_B - entropy_B).mean()
    return loss


def sharpen(probability_BC: Tensor, temperature: float) -> Tensor:
    """norm(p^(1/T))."""
    return (probability_BC.clamp(min=1e-12).log() / temperature).softmax(-1)


def within_candidates(probability_BC: Tensor, candidate_BC: Tensor) -> Tensor:
    """The partner's label: the prediction, restricted to the candidates and normalised."""
    chosen_BC = probability_BC * candidate_BC
    return chosen_BC / chosen_BC.sum(1, keepdim=True).clamp(min=1e-12)


def consistency_loss(
    logits_BC: Tensor,
    target_BC: Tensor,
    partial_B: Tensor,
    *,
    unlabelled_weight: float,
    error: UnlabelledError,
) -> Tensor:
    """L_cr: cross-entropy in the partial split, squared error of the probabilities in the unlabelled one.

    Args:
        logits_BC: Of strong views.
        target_BC: Sharpened co-pseudo-labels.
        partial_B: True for images of the partial split.
        unlabelled_weight: Of the squared error.
        error: Whether the squares are summed over the classes (paper) or averaged (code).
    """
    partial_loss_B = -(target_BC * logits_BC.log_softmax(-1)).sum(1)
    square_BC = (logits_BC.softmax(-1) - target_BC).square()
    unlabelled_loss_B = square_BC.sum(1) if error == "sum" else square_BC.mean(1)
    return torch.where(partial_B, partial_loss_B, unlabelled_weight * unlabelled_loss_B).mean()


def prototype_loss(
    projected_BD: Tensor,
    prototype_CD: Tensor,
    target_BC: Tensor,
    partial_B: Tensor,
    *,
    temperature: float,
    unlabelled_weight: float,
    error: UnlabelledError,
) -> Tensor:
    """L_prot: the softmax over prototypes is drawn to the target, by KL(target || s) or by squared error."""
    logits_BC = projected_BD @ prototype_CD.T / temperature
    log_BC = logits_BC.log_softmax(-1)
    divergence_B = F.kl_div(log_BC, target_BC, reduction="none").sum(1)
    square_BC = (log_BC.exp() - target_BC).square()
    square_B = square_BC.sum(1) if error == "sum" else square_BC.mean(1)
    return torch.where(partial_B, divergence_B, unlabelled_weight * square_B).mean()


class Projections(NamedTuple):
    """Images in the projected space, with what the contrast must know of them."""

    unit_ND: Tensor
    """Unit vectors."""
    class_N: Tensor
    """int64 pseudo-classes."""
    partial_N: Tensor
    """True for images of the partial split."""


def contrast_loss(
    queries: Projections,
    keys: Projections,
    own_B: Tensor,
    *,
    temperature: float,
    mode: Contrast,
    self_B: Tensor | None = None,
    anchor_B: Tensor | None = None,
) -> Tensor:
    """L_ncont: supervised contrast that distrusts what is not in the partial split.

    Positive: the key of the own other view, and keys of the same pseudo-class where both images are in the partial
    split. Keys of the same pseudo-class with either image in the unlabelled split are ignored: neither positive nor
    negative. All others are negative. Mode `sup` takes every key of the same pseudo-class for positive.

    Args:
        queries: This worker's images, with gradient.
        keys: This step's queries of all workers, their other views by the momentum copy, then the queue.
        own_B: int64 position among the keys of each query's other view.
        temperature: Of the softmax over keys.
        mode: `noisy` or `sup`.
        self_B: int64 position among the keys of each query itself, which it is not compared with; None: of none.
        anchor_B: Queries that count; None for all.
    """
    logits_BK = queries.unit_ND @ keys.unit_ND.T / temperature
    if self_B is not None:
        itself_BK = torch.zeros_like(logits_BK, dtype=torch.bool).scatter_(1, self_B[:, None], True)
        logits_BK = logits_BK.masked_fill(itself_BK, -torch.inf)
    own_BK = torch.zeros_like(logits_BK, dtype=torch.bool).scatter_(1, own_B[:, None], True)
    same_BK = queries.class_N[:, None] == keys.class_N[None]
    if mode == "noisy":
        trusted_BK = queries.partial_N[:, None] & keys.partial_N[None]
        positive_BK = own_BK | (same_BK & trusted_BK)
        logits_BK = logits_BK.masked_fill(same_BK & ~trusted_BK & ~own_BK, -torch.inf)
    else:
        positive_BK = own_BK | same_BK
    if self_B is not None:
        positive_BK = positive_BK & ~itself_BK
    log_BK = logits_BK.log_softmax(1).masked_fill(~positive_BK, 0.0)
    loss_B = -log_BK.sum(1) / positive_BK.sum(1)
    return loss_B.mean() if anchor_B is None else (loss_B * anchor_B).mean()


def move_prototypes(prototype_CD: Tensor, projected_BD: Tensor, class_B: Tensor, momentum: float) -> Tensor:
    """o_j <- g o_j + (1 - g) z for every image of class j in turn, then unit length; all classes at once.

    n images of a class leave g^n of its prototype, and g^(n - i) (1 - g) of the i-th image.
    """
    member_BC = F.one_hot(class_B, len(prototype_CD)).to(projected_BD.dtype)
    place_BC = member_BC.cumsum(0)
    count_C = member_BC.sum(0)
    weight_BC = member_BC * (1 - momentum) * momentum ** (count_C - place_BC)
    moved_CD = momentum ** count_C[:, None] * prototype_CD + weight_BC.T @ projected_BD
    return F.normalize(moved_CD, dim=1)
