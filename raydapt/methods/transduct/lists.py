"""Many images cut into lists of alike ones by k-means, of more than a million images at a cost that is linear in them.

Up to a million images every image is compared with every centre. Beyond, those are 4,000 coarse centres, and the fine
ones start as images drawn at random: k-means goes on over all images, each of which is compared with the fine centres
that started in the coarse lists around its own alone.

Legend: N images, L lists, P lists around one, D width, S a sample, M images of one coarse list, or coarse lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.artefacts.rows import Features, blocks, rows_of
from raydapt.methods.kmeans import fitted_kmeans

_CELLS_FACTOR = 4
"""Lists per square root of the number of images (faiss' guideline: 4 to 16)."""
_MOST_COARSE, _PER_LIST = 4000, 250
"""Lists of a million images, and how many images each of them has: more images have more lists, and not longer ones."""
_SHARED, _SHARED_STEPS = 32, 3
"""Coarse lists whose fine centres an image chooses among, itself included, and steps of k-means with that choice."""
_POINTS_PER_LIST, _KMEANS_STEPS = 64, 6
_ROWS = 8192


@dataclass(frozen=True)
class Lists:
    """L lists, none of them empty."""

    centre_LD: Tensor
    rows: Sequence[Tensor]
    """int64 rows of each list's images, ascending."""

    def around(self, count: int) -> Tensor:
        """The lists [L, P] whose centres are nearest to each list's centre, itself included."""
        count = min(count, len(self.centre_LD))
        return torch.cat([
            (centre_BD @ self.centre_LD.T).topk(count, dim=1).indices for centre_BD in torch.split(self.centre_LD, 1024)
        ])  # fmt: skip


def lists_of(feature_ND: Features) -> Lists:
    """Lists of L2-normalised features on the CPU: 4 sqrt(N), and of more than a million images about N / 250."""
    n_images, generator = len(feature_ND), torch.Generator().manual_seed(0)
    coarse_LD = _centres(feature_ND, min(int(_CELLS_FACTOR * math.sqrt(n_images)), _MOST_COARSE), generator)
    coarse = _lists(coarse_LD, _nearest(feature_ND, coarse_LD))
    if n_images <= _MOST_COARSE * _PER_LIST:
        return coarse
    drawn_L = torch.randperm(n_images, generator=generator)[: n_images // _PER_LIST]
    owner_L = _nearest(rows_of(feature_ND, drawn_L), coarse.centre_LD)
    bare_M = (torch.bincount(owner_L, minlength=len(coarse.rows)) == 0).nonzero()[:, 0]  # each gives its own centre
    centre_LD, owner_L = torch.cat([feature_ND[drawn_L], coarse.centre_LD[bare_M]]), torch.cat([owner_L, bare_M])
    around = [torch.isin(owner_L, around_P).nonzero()[:, 0] for around_P in coarse.around(_SHARED)]
    for _ in range(_SHARED_STEPS):
        centre_LD = _means(feature_ND, _assigned(feature_ND, centre_LD, coarse, around), centre_LD)
    return _lists(centre_LD, _assigned(feature_ND, centre_LD, coarse, around))


def _assigned(feature_ND: Features, centre_LD: Tensor, coarse: Lists, around: Sequence[Tensor]) -> Tensor:
    """The nearest centre int64 [N] of those that came of the coarse lists around an image's own."""
    list_N = torch.empty(len(feature_ND), dtype=torch.int64)
    for row_M, number_F in zip(coarse.rows, around, strict=True):
        list_N[row_M] = number_F[_nearest(rows_of(feature_ND, row_M), centre_LD[number_F])]
    return list_N


def _means(feature_ND: Features, list_N: Tensor, centre_LD: Tensor) -> Tensor:
    """The means of the images of each centre, L2-normalised; a centre without images stays."""
    sum_LD = torch.zeros_like(centre_LD)
    for rows in blocks(len(feature_ND), _ROWS):
        sum_LD.index_add_(0, list_N[rows], feature_ND[rows])
    size_L1 = torch.bincount(list_N, minlength=len(centre_LD))[:, None]
    return torch.where(size_L1 > 0, F.normalize(sum_LD, dim=1), centre_LD)


def _centres(feature_ND: Features, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` centres [L, D] of k-means on a sample."""
    drawn_S = torch.randperm(len(feature_ND), generator=generator)[: _POINTS_PER_LIST * count]
    kmeans = fitted_kmeans(feature_ND[drawn_S], min(count, len(drawn_S)), init="random", max_iter=_KMEANS_STEPS)
    return F.normalize(torch.from_numpy(kmeans.cluster_centers_), dim=1)


def _nearest(feature_ND: Features, centre_LD: Tensor) -> Tensor:
    """The nearest centre int64 [N] of each image."""
    return torch.cat([(feature_ND[rows] @ centre_LD.T).argmax(dim=1) for rows in blocks(len(feature_ND), _ROWS)])


def _lists(centre_LD: Tensor, list_N: Tensor) -> Lists:
    """The lists of which the images are known.

    Where images are copies, many centres are one place: those that no image chose would crowd out the others.
    """
    chosen_L, list_N, size_L = list_N.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    return Lists(centre_LD[chosen_L], torch.split(torch.argsort(list_N, stable=True), size_L.tolist()))
