"""Class description anchors, the crops of an image, their alignment score and its weights: the rules of FAIR.

The abstract of the paper (arXiv 2507.09615) states the parts; their details are a reconstruction. The formulas of
anchors and weights are those of the same authors' public code (microCLIP and DPA).

Legend: B batch, C classes, M descriptions of all classes together, N crops per image, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Weighting = Literal["none", "agreement", "margin"]
TopK = int | Literal["all"]
AnchorMean = Literal["plain", "weighted", "softmax"]
_DESCRIPTION_SCALE = math.e**2


def description_weights(kind: AnchorMean, embedding_MD: Tensor, class_M: Tensor, prompt_CD: Tensor) -> Tensor:
    """Shares [M] of the descriptions within their classes; they sum to 1 in each class.

    Args:
        kind: ``plain``: equal shares; ``weighted``: by the cosine with the class's prompt (microCLIP); ``softmax``: by
            the softmax of exp(2) times that cosine (the public code of WCA).
        embedding_MD: L2-normalised embeddings of the descriptions.
        class_M: int64 class of each of them; every class has at least one.
        prompt_CD: Hand-written prompt ensemble of the classes.
    """
    cosine_M = (embedding_MD * prompt_CD[class_M]).sum(dim=1)
    if kind == "plain":
        weight_M = torch.ones_like(cosine_M)
    elif kind == "weighted":
        weight_M = cosine_M.clamp_min(1e-6)
    else:
        weight_M = (_DESCRIPTION_SCALE * cosine_M).exp()  # at most exp(7.4), so no overflow
    total_C = torch.zeros(int(class_M.max()) + 1, device=weight_M.device).index_add(0, class_M, weight_M)
    return weight_M / total_C[class_M]


def class_sums(value_MD: Tensor, class_M: Tensor, n_classes: int) -> Tensor:
    """Sums [C, D] over the rows of each class."""
    return torch.zeros(n_classes, value_MD.shape[1], device=value_MD.device).index_add(0, class_M, value_MD)


def crop_weights(whole_BD: Tensor, crop_BND: Tensor, *, top_k: TopK, temperature: float) -> Tensor:
    """Rho [B, N]: softmax of (crop . whole) / temperature over the `top_k` crops most like the whole, 0 elsewhere."""
    similarity_BN = torch.einsum("bnd,bd->bn", crop_BND, whole_BD)
    kept = similarity_BN.topk(similarity_BN.shape[1] if top_k == "all" else top_k, dim=1)
    share_BK = (kept.values / temperature).softmax(dim=1)
    return torch.zeros_like(similarity_BN).scatter(1, kept.indices, share_BK)


def composite(whole_BD: Tensor, crop_BND: Tensor, *, top_k: TopK, temperature: float) -> Tensor:
    """U [B, D] = norm(sum_i rho_i f_i): the alignment score of a class is u . anchor, since scores are linear in f.

    Without crops it is the feature of the whole image.
    """
    if not crop_BND.shape[1]:
        return whole_BD
    weight_BN = crop_weights(whole_BD, crop_BND, top_k=top_k, temperature=temperature)
    return F.normalize(torch.einsum("bn,bnd->bd", weight_BN, crop_BND), dim=1)


def sample_weights(kind: Weighting, score_BC: Tensor, other_BC: Tensor) -> Tensor:
    """Omega [B] in (0, 1] of the pseudo-labels argmax `score_BC`, less where classes are confused.

    Args:
        kind: ``agreement``: [P_A(y) / max P_A] [P_B(y) / max P_B], the form of DPA's code, below 1 where the heads
            disagree; ``margin``: 1 - P_A(second) / P_A(first); ``none``: 1.
        score_BC: Logits of the head that makes the pseudo-labels.
        other_BC: Logits of the second head.
    """
    if kind == "none":
        return torch.ones(len(score_BC), device=score_BC.device)
    label_B1 = score_BC.argmax(dim=1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    if kind == "agreement":
        ratios = [x.gather(1, label_B1).squeeze(1) - x.max(dim=1).values for x in (score_BC, other_BC)]
        return torch.exp(ratios[0] + ratios[1]).clamp_min(tiny)  # a ratio of softmaxes is exp of a difference
    best_B2 = score_BC.topk(2, dim=1).values
    return (1 - torch.exp(best_B2[:, 1] - best_B2[:, 0])).clamp_min(tiny)


def fairness_loss(
    logits_BC: Tensor, past_C: Tensor, memory: float, target_C: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """-sum_c t_c log q_c / (1 - memory), least when the mean prediction q is the target t, and q.

    q = memory past + (1 - memory) p with the batch's mean softmax p. The division gives p the gradient's usual length
    (MUST and microCLIP, whose memory is a half). Of one batch alone, classes that are not in it cost without end.

    Args:
        logits_BC: Of the whole batch.
        past_C: The last step's q, without gradient; the target before the first.
        memory: Share of the past, from 0 to below 1.
        target_C: Class shares that sum to 1; None asks for all classes equally often, t_c = 1 / C.
    """
    mean_C = memory * past_C + (1 - memory) * logits_BC.softmax(dim=1).mean(dim=0)
    log_C = mean_C.clamp_min(torch.finfo(torch.float32).tiny).log()
    expected = log_C.mean() if target_C is None else (target_C.to(log_C) * log_C).sum()
    return -expected / (1 - memory), mean_C.detach()
