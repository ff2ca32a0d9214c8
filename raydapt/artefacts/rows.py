"""Features of many images, read by rows: always float32, whatever they are held in, and never copied as a whole.

A tensor [N, D] is such features. `HeldFeatures` are some rows of a larger tensor, which may be float16: a million
features of width 512 take 2 GB in float32, ten million 10 GB in float16.

Legend: A all images of a source, N images, B block, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, overload

import torch
from torch import Tensor

MOST_EXACT_BYTES = 4 * 2**30
"""Features that would take more in float32 are held in float16, whose error in a cosine is about 1e-5."""
_PIECE_ROWS = 1024
_BLOCK_ROWS = 16_384


class Features(Protocol):
    """What a reader of features may ask of them; a float32 tensor [N, D] is such."""

    @property
    def shape(self) -> torch.Size:
        """N and D."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        """float32 [B, D] of a slice or of int64 rows."""


class HeldFeatures:
    """Some rows of a tensor [A, D] of floats, in the order of these rows."""

    def __init__(self, value_AD: Tensor, row_N: Tensor | None = None) -> None:
        """Keeps both as they are; None: all rows."""
        self.value_AD, self.row_N = value_AD, row_N

    @property
    def shape(self) -> torch.Size:
        """N and D."""
        return torch.Size((len(self), self.value_AD.shape[1]))

    def __len__(self) -> int:
        """N."""
        return len(self.value_AD if self.row_N is None else self.row_N)

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        """float32 [B, D] of a slice or of int64 rows."""
        source_B = rows if self.row_N is None else self.row_N[rows]
        if isinstance(source_B, slice):
            return self.value_AD[source_B].float()
        return take(self.value_AD, source_B).float()


def held(value_AD: Tensor) -> Features:
    """A tensor as features: float32 as it is, float16 behind `HeldFeatures`."""
    return value_AD if value_AD.dtype == torch.float32 else HeldFeatures(value_AD)


def room_for(n_images: int, width: int) -> Tensor:
    """Zeros [N, D] to read features into, in float32 or, beyond `MOST_EXACT_BYTES`, in float16."""
    exact = 4 * n_images * width <= MOST_EXACT_BYTES
    return torch.zeros(n_images, width, dtype=torch.float32 if exact else torch.float16)


@overload
def rows_of(feature_AD: Tensor, row_N: Tensor) -> Tensor | HeldFeatures: ...
@overload
def rows_of(feature_AD: Features, row_N: Tensor) -> Features: ...
def rows_of(feature_AD: Features, row_N: Tensor) -> Features:
    """Some rows as features, without a copy; where they are all rows, the features themselves."""
    if len(row_N) == len(feature_AD) and torch.equal(row_N, torch.arange(len(row_N), device=row_N.device)):
        return feature_AD
    if isinstance(feature_AD, Tensor):
        return HeldFeatures(feature_AD, row_N)
    assert isinstance(feature_AD, HeldFeatures)
    return HeldFeatures(feature_AD.value_AD, row_N if feature_AD.row_N is None else feature_AD.row_N[row_N])


def on_device(feature_ND: Features, device: torch.device) -> Features:
    """The features on a device: on the CPU themselves, elsewhere a copy in what they are held in."""
    if device.type == "cpu":
        return feature_ND
    if isinstance(feature_ND, Tensor):
        return feature_ND.to(device)
    assert isinstance(feature_ND, HeldFeatures)
    there_ND = torch.empty(feature_ND.shape, dtype=feature_ND.value_AD.dtype, device=device)
    for rows in blocks(len(feature_ND)):
        there_ND[rows] = feature_ND[rows].to(there_ND)
    return held(there_ND)


def copy_rows(feature_ND: Features, row_B: Tensor, out_BD: Tensor) -> Tensor:
    """Writes the features of int64 rows into the front of a buffer and returns that part, [B, D].

    A new array of megabytes costs more than what is written into it: the system hands it out page by page.
    """
    value_AD = feature_ND.value_AD if isinstance(feature_ND, HeldFeatures) else feature_ND
    assert isinstance(value_AD, Tensor)
    for start in range(0, len(row_B), _PIECE_ROWS):
        source_P = piece_P = row_B[start : start + _PIECE_ROWS]
        if isinstance(feature_ND, HeldFeatures) and feature_ND.row_N is not None:
            source_P = take(feature_ND.row_N, piece_P)
        out_BD[start : start + len(piece_P)].copy_(take(value_AD, source_P))
    return out_BD[: len(row_B)]


def take(value_AD: Tensor, row_B: Tensor) -> Tensor:
    """Rows of a matrix; on a CPU less than half the time that indexing takes."""
    return value_AD.index_select(0, row_B)


def blocks(n_images: int, rows: int | None = None) -> Iterator[slice]:
    """The rows of all images, a bounded number at a time.

    What comes of a block is written into one array for all: a list of small results keeps each of them where the block
    lay, and the next block takes new memory.
    """
    rows = rows or _BLOCK_ROWS
    for start in range(0, n_images, rows):
        yield slice(start, min(start + rows, n_images))


def first_values(feature_ND: Features) -> Tensor:
    """The first value [N] of every image's features, block by block."""
    first_N = torch.empty(len(feature_ND))
    for rows in blocks(len(feature_ND)):
        first_N[rows] = feature_ND[rows][:, 0]
    return first_N
