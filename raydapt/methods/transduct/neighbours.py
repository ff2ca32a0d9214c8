"""The nearest images of every image, by cosine, found block by block.

On a CPU faiss, or scikit-learn without it, compares all pairs up to `EXACT_LIMIT` images. Above it k-means cuts the
images into lists, and those of a list are compared with those of the lists around it, as products of matrices: a time
that grows with N^1.5 instead of N^2. On another device torch compares all pairs.

Legend: N images, K neighbours, D width, L lists, P lists around one, A images of those, B block of queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.methods.kmeans import fitted_kmeans

EXACT_LIMIT = 20_000
"""Images up to which all pairs are compared."""
_CELLS_FACTOR = 4
"""Lists per square root of the number of images (faiss' guideline: 4 to 16)."""
_PROBED = 48
"""Lists around a list, itself included, that are searched for its images."""
_POINTS_PER_LIST, _KMEANS_STEPS = 64, 6
_BLOCK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Neighbours:
    """The images most like each image, the most alike first."""

    index_NK: Tensor
    """int64 rows."""
    affinity_NK: Tensor
    """float32 w_ij = max(0, f_i . f_j), TransCLIP's (Zanella et al., NeurIPS 2024, section 3); 0 for a place that could
    not be filled."""


def nearest(feature_ND: Tensor, k: int) -> Neighbours:
    """The `k` other images of largest cosine and their affinities.

    Args:
        feature_ND: float32 L2-normalised features.
        k: Neighbours of each image; fewer where there are not so many others.
    """
    n_images = len(feature_ND)
    k = min(k, n_images - 1)
    if k < 1:
        empty = feature_ND.new_zeros(n_images, 0)
        return Neighbours(empty.to(torch.int64), empty)
    cosine_NK, index_NK = _search(feature_ND, k + 1)
    cosine_NK, index_NK = _without_itself(cosine_NK, index_NK)
    return Neighbours(index_NK.clamp_min(0), cosine_NK.clamp_min(0).masked_fill(index_NK < 0, 0))


def _without_itself(cosine_NK: Tensor, index_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Drops an image from its own list, or, where copies of it came first, the list's last entry."""
    own_NK = index_NK == torch.arange(len(index_NK), device=index_NK.device)[:, None]
    own_NK[:, -1] |= ~own_NK.any(dim=1)
    kept = (len(index_NK), index_NK.shape[1] - 1)
    return cosine_NK[~own_NK].reshape(kept), index_NK[~own_NK].reshape(kept)


def _search(feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if feature_ND.device.type != "cpu":
        return _by_torch(feature_ND, k)
    if len(feature_ND) > EXACT_LIMIT:
        return _by_lists(feature_ND, k)
    faiss = _faiss()
    return _by_sklearn(feature_ND, k) if faiss is None else _by_faiss(faiss, feature_ND, k)


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


def _by_lists(feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Nearly all neighbours; places that the lists around an image cannot fill are -1.

    An inverted file such as faiss' goes through its lists query by query, at a twentieth of a matrix product's speed.
    """
    n_images = len(feature_ND)
    n_lists = int(_CELLS_FACTOR * math.sqrt(n_images))
    drawn_S = torch.randperm(n_images, generator=torch.Generator().manual_seed(0))[: _POINTS_PER_LIST * n_lists]
    kmeans = fitted_kmeans(feature_ND[drawn_S], n_lists, init="random", max_iter=_KMEANS_STEPS)
    centre_LD = F.normalize(torch.from_numpy(kmeans.cluster_centers_), dim=1)
    nearest_N = torch.cat([best.indices[:, 0] for best in _best_of(feature_ND, centre_LD, 1)])
    # Where images are copies, many centres are one place: those that no image chose would crowd out the others.
    chosen_L, list_N, size_L = nearest_N.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    centre_LD = centre_LD[chosen_L]
    around_LP = torch.cat([best.indices for best in _best_of(centre_LD, centre_LD, min(_PROBED, len(centre_LD)))])
    rows_of_list = torch.split(torch.argsort(list_N, stable=True), size_L.tolist())
    cosine_NK, index_NK = torch.zeros(n_images, k), torch.full((n_images, k), -1)
    for rows_of_one, around_P in zip(rows_of_list, around_LP.tolist(), strict=True):
        rows_A = torch.cat([rows_of_list[number] for number in around_P])
        start, found = 0, min(k, len(rows_A))
        for best in _best_of(feature_ND[rows_of_one], feature_ND[rows_A], found):
            rows_B = rows_of_one[start : start + len(best.indices)]
            cosine_NK[rows_B, :found], index_NK[rows_B, :found] = best.values, rows_A[best.indices]
            start += len(rows_B)
    return cosine_NK, index_NK


def _by_sklearn(feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from sklearn.neighbors import NearestNeighbors

    vectors_ND = feature_ND.numpy()
    distance_NK, index_NK = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors_ND).kneighbors(vectors_ND)
    # |a - b|^2 = 2 - 2 cos of unit vectors
    return torch.from_numpy(1 - distance_NK**2 / 2).float(), torch.from_numpy(index_NK).to(torch.int64)


def _by_torch(feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = list(_best_of(feature_ND, feature_ND, k))
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


def _best_of(query_ND: Tensor, vector_AD: Tensor, k: int) -> Iterator[torch.return_types.topk]:
    """The `k` largest products with the vectors, [B, K] a block of queries after the other."""
    block = max(1, _BLOCK_BYTES // (4 * max(1, len(vector_AD))))
    for query_BD in torch.split(query_ND, block):
        yield (query_BD @ vector_AD.T).topk(k, dim=1)
