"""Partial labels: every image gets a set of classes that CLIP holds for possible (Co-Reg, annotation stage).

Legend: N images, B images of a block, R templates, C classes, D width of the shared space.
"""

from collections.abc import Sequence

import torch
from scipy.sparse import vstack
from torch import Tensor

from raydapt.artefacts.partial_labels import Annotation, PartialLabels

_MOST_ROWS, _MOST_VOTES = 4096, 1 << 24
"""Of a block: images, and probabilities under all templates (64 MiB)."""


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
    n_templates, n_classes, _ = class_RCD.shape
    blocks = []
    for feature_BD in torch.split(feature_ND, rows_per_block(n_templates, n_classes)):
        logits_RBC = logit_scale * torch.einsum("md,rcd->rmc", feature_BD, class_RCD)
        blocks.append(_annotate_block(logits_RBC.softmax(-1), mode=mode, topk=topk, ratio=ratio))
    return _joined(blocks)


def annotate_votes(probability_RNC: Tensor, *, mode: Annotation, topk: int, ratio: float) -> PartialLabels:
    """Partial labels from what R annotators, templates or others, hold for probable; the rest as in `annotate`."""
    blocks = torch.split(probability_RNC, rows_per_block(len(probability_RNC), probability_RNC.shape[2]), dim=1)
    return _joined([_annotate_block(block_RBC, mode=mode, topk=topk, ratio=ratio) for block_RBC in blocks])


def rows_per_block(n_templates: int, n_classes: int) -> int:
    """Images that are annotated at once."""
    return max(1, min(_MOST_ROWS, _MOST_VOTES // (n_templates * n_classes)))


def _annotate_block(probability_RBC: Tensor, *, mode: Annotation, topk: int, ratio: float) -> PartialLabels:
    mean_BC = probability_RBC.mean(0)
    candidate_BC = _candidates(probability_RBC, mean_BC, mode=mode, topk=topk, ratio=ratio)
    return PartialLabels.of_block(candidate_BC, mean_BC)


def _candidates(probability_RBC: Tensor, mean_BC: Tensor, *, mode: Annotation, topk: int, ratio: float) -> Tensor:
    candidate_BC = torch.zeros_like(mean_BC)
    if mode == "prompts":
        return candidate_BC.scatter_(1, probability_RBC.argmax(-1).T, 1.0)
    if mode == "topk":
        return candidate_BC.scatter_(1, mean_BC.topk(min(topk, mean_BC.shape[1]), dim=1).indices, 1.0)
    if mode == "prob_ratio":
        return (mean_BC >= ratio * mean_BC.amax(1, keepdim=True)).to(torch.float32)
    return mean_BC


def _joined(blocks: Sequence[PartialLabels]) -> PartialLabels:
    return PartialLabels(
        candidate_NC=vstack([block.candidate_NC for block in blocks], format="csr"),
        likeliest_N=torch.cat([block.likeliest_N for block in blocks]),
    )
