"""Partial labels: every image gets a set of classes that CLIP holds for possible (Co-Reg, annotation stage).

Legend: N images, R templates, C classes, D width of the shared space.
"""

import torch
from torch import Tensor

from raydapt.artefacts.partial_labels import Annotation, PartialLabels

_ROWS_PER_CHUNK = 4096


@torch.no_grad()
def annotate(
    feature_ND: Tensor, class_RCD: Tensor, logit_scale: float, *, mode: Annotation, topk: int, ratio: float
) -> PartialLabels:
    """Partial labels from image features (Co-Reg, section "annotation"; modes of the public code).

    Args:
        feature_ND: L2-normalised features of the frozen image tower.
        class_RCD: L2-normalised class embeddings under each template.
        logit_scale: Factor from cosine to logit.
        mode: `prompts`: the union over the templates of each one's best class. The others read the mean probability:
            `topk` its best classes, `prob_ratio` all that reach a share of its maximum, `mean` itself (as soft label).
        topk: Of mode `topk`.
        ratio: Of mode `prob_ratio`.
    """
    chunks = []
    for chunk_MD in torch.split(feature_ND, _ROWS_PER_CHUNK):
        logits_RMC = logit_scale * torch.einsum("md,rcd->rmc", chunk_MD, class_RCD)
        chunks.append(annotate_votes(logits_RMC.softmax(-1), mode=mode, topk=topk, ratio=ratio))
    shape = (0, class_RCD.shape[1])
    return PartialLabels(
        candidate_NC=torch.cat([chunk.candidate_NC for chunk in chunks]) if chunks else torch.zeros(shape),
        probability_NC=torch.cat([chunk.probability_NC for chunk in chunks]) if chunks else torch.zeros(shape),
    )


def annotate_votes(probability_RNC: Tensor, *, mode: Annotation, topk: int, ratio: float) -> PartialLabels:
    """Partial labels from what R annotators, templates or others, hold for probable; the rest as in `annotate`."""
    mean_NC = probability_RNC.mean(0)
    return PartialLabels(
        candidate_NC=_candidates(probability_RNC, mean_NC, mode=mode, topk=topk, ratio=ratio), probability_NC=mean_NC
    )


def _candidates(probability_RNC: Tensor, mean_NC: Tensor, *, mode: Annotation, topk: int, ratio: float) -> Tensor:
    candidate_NC = torch.zeros_like(mean_NC)
    if mode == "prompts":
        return candidate_NC.scatter_(1, probability_RNC.argmax(-1).T, 1.0)
    if mode == "topk":
        return candidate_NC.scatter_(1, mean_NC.topk(min(topk, mean_NC.shape[1]), dim=1).indices, 1.0)
    if mode == "prob_ratio":
        return (mean_NC >= ratio * mean_NC.amax(1, keepdim=True)).to(torch.float32)
    return mean_NC


def restrict_classes(labels: PartialLabels, classes: Tensor) -> PartialLabels:
    """Leaves only some classes as candidates (TRZSL: the unseen ones); a set that is empty then gets the likeliest.

    Args:
        labels: Of N images.
        classes: int64 classes that may stay.
    """
    n_classes = labels.candidate_NC.shape[1]
    if len(classes) == n_classes:
        return labels
    allowed_C = torch.zeros(n_classes).index_fill_(0, classes, 1.0)
    candidate_NC = labels.candidate_NC * allowed_C
    likeliest_N = (labels.probability_NC * allowed_C + allowed_C).argmax(1)
    empty_N = candidate_NC.sum(1) == 0
    candidate_NC[empty_N, likeliest_N[empty_N]] = 1.0
    return PartialLabels(candidate_NC=candidate_NC, probability_NC=labels.probability_NC)
