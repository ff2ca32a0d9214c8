"""The nearest images of every image, by cosine, found block by block.

On a CPU faiss finds them: exactly up to `EXACT_LIMIT` images, above it by lists (an inverted file), whose time grows
with N^1.5 instead of N^2. On another device torch does, exactly. Without faiss, scikit-learn takes its place.

Legend: N images, Q queries, K neighbours, D width, B block of queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

EXACT_LIMIT = 20_000
"""Images up to which all pairs are compared."""
_CELLS_FACTOR = 4
"""Lists per square root of the number of images (faiss' guideline: 4 to 16)."""
_PROBED = 16
"""Lists that are searched for a query."""
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
    faiss = _faiss()
    if faiss is None:
        return _by_sklearn(feature_ND, k)
    return _by_faiss(faiss, feature_ND, k)


def _faiss() -> ModuleType | None:
    try:
        import faiss
    except ImportError:
        return None
    module: ModuleType = faiss
    return module


def _by_faiss(faiss: ModuleType, feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    vectors_ND = feature_ND.contiguous().numpy()
    if len(vectors_ND) <= EXACT_LIMIT:
        cosine_NK, index_NK = faiss.knn(vectors_ND, vectors_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        width = vectors_ND.shape[1]
        n_lists = int(_CELLS_FACTOR * math.sqrt(len(vectors_ND)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, n_lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64
        index.cp.niter = 6
        index.train(vectors_ND)
        index.add(vectors_ND)
        index.nprobe = _PROBED
        cosine_NK, index_NK = index.search(vectors_ND, k)
    return torch.from_numpy(cosine_NK), torch.from_numpy(index_NK)


def _by_sklearn(feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from sklearn.neighbors import NearestNeighbors

    vectors_ND = feature_ND.numpy()
    distance_NK, index_NK = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors_ND).kneighbors(vectors_ND)
    # |a - b|^2 = 2 - 2 cos of unit vectors
    return torch.from_numpy(1 - distance_NK**2 / 2).float(), torch.from_numpy(index_NK).to(torch.int64)


def _by_torch(feature_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    block = max(1, _BLOCK_BYTES // (4 * len(feature_ND)))
    best = [(queries_BD @ feature_ND.T).topk(k, dim=1) for queries_BD in torch.split(feature_ND, block)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])
