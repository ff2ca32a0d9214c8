"""The nearest images of every image, by cosine, found block by block.

On a CPU faiss, or scikit-learn without it, compares all pairs up to `EXACT_LIMIT` images. Above it the images are cut
into lists (see `raydapt.methods.transduct.lists`), and those of a list are compared with those of the lists around it,
as products of matrices. On another device torch compares all pairs.

Legend: N images, K neighbours, D width, P lists around one, A images of those, B block of queries, G groups of S.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from raydapt.artefacts.rows import Features, copy_rows
from raydapt.methods.transduct.lists import lists_of

EXACT_LIMIT = 20_000
"""Images up to which all pairs are compared."""
_PROBED = 48
"""Lists around a list, itself included, that are searched for its images."""
_BLOCK_BYTES = 256 * 2**20
_GROUP = 96
"""Products of which the largest is looked at first (see `_largest`)."""


@dataclass(frozen=True)
class Neighbours:
    """The images most like each image, the most alike first."""

    index_NK: Tensor
    """int32 rows."""
    affinity_NK: Tensor
    """float32 w_ij = max(0, f_i . f_j), TransCLIP's (Zanella et al., NeurIPS 2024, section 3); 0 for a place that could
    not be filled."""


def nearest(feature_ND: Features, k: int, device: torch.device | None = None) -> Neighbours:
    """The `k` other images of largest cosine and their affinities.

    Args:
        feature_ND: L2-normalised features.
        k: Neighbours of each image; fewer where there are not so many others.
        device: Where the features are, if not on the CPU.
    """
    n_images, device = len(feature_ND), device or torch.device("cpu")
    k = min(k, n_images - 1)
    if k < 1:
        return Neighbours(torch.zeros(n_images, 0, dtype=torch.int32, device=device),
                          torch.zeros(n_images, 0, device=device))  # fmt: skip
    cosine_NK, index_NK = _search(feature_ND, k + 1, device)
    return Neighbours(index_NK.clamp_(min=0), cosine_NK)


def _without_itself(cosine_BK: Tensor, index_BK: Tensor, row_B: Tensor) -> tuple[Tensor, Tensor]:
    """Affinities and rows; drops an image from its own list, or, where copies of it came first, the list's last."""
    own_BK = index_BK == row_B[:, None]
    own_BK[:, -1] |= ~own_BK.any(dim=1)
    kept = (len(index_BK), index_BK.shape[1] - 1)
    cosine_BK, index_BK = cosine_BK[~own_BK].reshape(kept), index_BK[~own_BK].reshape(kept)
    return cosine_BK.clamp_min(0).masked_fill(index_BK < 0, 0), index_BK.to(torch.int32)


def _search(feature_ND: Features, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Affinities and rows [N, k - 1], of an image itself and its neighbours without itself."""
    if device.type == "cpu" and len(feature_ND) > EXACT_LIMIT:
        return _by_lists(feature_ND, k)
    all_ND, faiss = feature_ND[slice(None)], _faiss()
    if device.type != "cpu":
        found = _by_torch(all_ND, k)
    else:
        found = _by_sklearn(all_ND, k) if faiss is None else _by_faiss(faiss, all_ND, k)
    return _without_itself(*found, torch.arange(len(all_ND), device=device))


def _faiss() -> ModuleType | None:
    try:
        import faiss
    except ImportError:
        return None
    module: ModuleType = faiss
    return module


def _by_faiss(faiss: ModuleType, feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    vectors_ND = feature_ND.contiguous().numpy()
    cosine_NK, index_NK = faiss.knn(vectors_ND, vectors_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(cosine_NK), torch.from_numpy(index_NK)


def _by_lists(feature_ND: Features, k: int) -> tuple[Tensor, Tensor]:
    """Nearly all neighbours; places that the lists around an image cannot fill are -1.

    An inverted file such as faiss' goes through its lists query by query, at a twentieth of a matrix product's speed.
    """
    n_images, lists = len(feature_ND), lists_of(feature_ND)
    affinity_NK, index_NK = torch.zeros(n_images, k - 1), torch.full((n_images, k - 1), -1, dtype=torch.int32)
    room_AD = torch.empty(0, feature_ND.shape[1])
    for row_B, around_P in zip(lists.rows, lists.around(_PROBED).tolist(), strict=True):
        row_A = torch.cat([lists.rows[number] for number in around_P])
        if len(row_A) > len(room_AD):
            room_AD = torch.empty(len(row_A) * 5 // 4, feature_ND.shape[1])
        start, vector_AD = 0, copy_rows(feature_ND, row_A, room_AD)
        for best in _best_of(feature_ND[row_B], vector_AD, min(k, len(row_A))):
            of_B = row_B[start : start + len(best[0])]
            affinity_BK, index_BK = _without_itself(best[0], row_A[best[1]], of_B)
            found = index_BK.shape[1]
            affinity_NK[of_B, :found], index_NK[of_B, :found] = affinity_BK, index_BK
            start += len(of_B)
    return affinity_NK, index_NK


def _by_sklearn(feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from sklearn.neighbors import NearestNeighbors

    vectors_ND = feature_ND.numpy()
    distance_NK, index_NK = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors_ND).kneighbors(vectors_ND)
    # |a - b|^2 = 2 - 2 cos of unit vectors
    return torch.from_numpy(1 - distance_NK**2 / 2).float(), torch.from_numpy(index_NK).to(torch.int64)


def _by_torch(feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = list(_best_of(feature_ND, feature_ND, k))
    return torch.cat([values for values, _ in best]), torch.cat([indices for _, indices in best])


def _best_of(query_ND: Tensor, vector_AD: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The `k` largest products with the vectors, [B, K] a block of queries after the other."""
    block = max(1, _BLOCK_BYTES // (4 * max(1, len(vector_AD))))
    for query_BD in torch.split(query_ND, block):
        yield _largest(query_BD @ vector_AD.T, k)


def _largest(value_BA: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of many values and their places, [B, K] each.

    The `k` largest lie in those `k` groups of which the largest members are largest, and a group's largest is found
    four times as fast as `topk` goes through its members.
    """
    n_groups = value_BA.shape[1] // _GROUP
    if n_groups < 4 * k:
        values_BK, place_BK = value_BA.topk(k, dim=1)
        return values_BK, place_BK
    whole = n_groups * _GROUP
    value_BGS = value_BA[:, :whole].reshape(-1, n_groups, _GROUP)
    group_BK = value_BGS.amax(dim=2).topk(k, dim=1).indices
    within_BKS = value_BGS.gather(1, group_BK[:, :, None].expand(-1, -1, _GROUP))
    rest_BR = value_BA[:, whole:]
    values_BK, place_BK = torch.cat([within_BKS.flatten(1), rest_BR], dim=1).topk(k, dim=1)
    group, member = place_BK // _GROUP, place_BK % _GROUP
    in_group_BK = group_BK.gather(1, group.clamp_max(k - 1)) * _GROUP + member
    return values_BK, torch.where(group < k, in_group_BK, place_BK - k * _GROUP + whole)
