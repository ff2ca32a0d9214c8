"""The most probable class of many images, without a matrix of all images by all classes.

Legend: N images, B images at a time, C classes, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from raydapt.artefacts.rows import Features, blocks

_ROWS_PER_CHUNK = 8192


@torch.no_grad()
def best_classes(feature_ND: Features, scores: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The highest score of every image, float32 [N], and its class, int64 [N]; of equal scores the first class.

    Args:
        feature_ND: Features of the images.
        scores: Gives the scores [B, C] of some of them.
    """
    score_N, class_N = torch.empty(len(feature_ND)), torch.empty(len(feature_ND), dtype=torch.int64)
    for rows in blocks(len(feature_ND), _ROWS_PER_CHUNK):
        score_N[rows], class_N[rows] = scores(feature_ND[rows]).max(dim=1)
    return score_N, class_N
