"""The decoded images of a source: what they depend on, and how they are read without an array of all of them.

Legend: N images, R images of the source, M asked for, B batch, S image side in px.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from raydapt.artefacts.features import image_settings
from raydapt.artefacts.loaded import load_once
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.settings.groups import DataSettings, PixelEncoding
from raydapt.store.artefact import DECODED_BYTES, Artefact, Shard, rows_of_group
from raydapt.store.fingerprint import Recipe

KIND = "pixels"
_FORMATS: dict[str, dict[str, Any]] = {
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},  # a smaller one takes 13 times as long
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
_READERS = 8
"""Threads that read blocks: they wait for the storage and decompress, both outside the interpreter's lock."""


class StoredPixels:
    """Decoded images that stay in the store; what is asked for is read block by block.

    A block is a group of rows of one shard, of about a MiB. Reading one costs as much as reading a single row of it, so
    an order of training keeps the rows of a block together (see `raydapt.train.sampling.BlockOrder`).
    """

    def __init__(self, artefact: Artefact) -> None:
        """Reads the manifest alone."""
        self._artefact, manifest = artefact, artefact.manifest
        self.side_px = int(manifest.settings["image"]["size_px"])
        self.row_bytes = 3 * self.side_px**2
        step = rows_of_group(self.row_bytes)
        self._blocks: list[tuple[Shard, int, int]] = []
        starts, first = [], 0
        for shard in manifest.shards:
            for start in range(0, shard.rows, step):
                self._blocks.append((shard, start, min(start + step, shard.rows)))
                starts.append(first + start)
            first += shard.rows
        self._rows = first
        self._start_G = torch.tensor(starts, dtype=torch.int64)

    def __len__(self) -> int:
        """Images of the source."""
        return self._rows

    def block_of(self, row_M: Tensor) -> Tensor:
        """int64 number of the block that each row lies in."""
        return torch.searchsorted(self._start_G, row_M.contiguous(), right=True) - 1

    def __getitem__(self, row_M: Tensor) -> Tensor:
        """uint8 pixels [M, 3, S, S] of int64 rows, read from the store; images in error are zeros."""
        pixel_M3SS = np.empty((len(row_M), 3, self.side_px, self.side_px), dtype=np.uint8)
        order_M = torch.argsort(row_M, stable=True)
        blocks, counts = torch.unique_consecutive(self.block_of(row_M[order_M]), return_counts=True)
        places = torch.split(order_M, counts.tolist())

        def fill(number: int, index_B: Tensor) -> None:
            shard, start, stop = self._blocks[number]
            table = self._artefact.read_rows(shard, start, stop, ["pixel"])
            within_B = row_M[index_B] - self._start_G[number]
            pixel_M3SS[index_B.numpy()] = pixels_of(table, within_B.numpy())

        with ThreadPoolExecutor(_READERS) as readers:
            for done in [readers.submit(fill, *each) for each in zip(blocks.tolist(), places, strict=True)]:
                done.result()
        return torch.from_numpy(pixel_M3SS)


Pixels = Tensor | StoredPixels
"""uint8 pixels [R, 3, S, S], to be indexed by a tensor of rows: in memory, or in the store."""


@dataclass(frozen=True)
class PixelRows:
    """Some rows of a larger set of pixels, which is never copied as a whole."""

    pixel_R3SS: Pixels
    """uint8 pixels of all R images of the source."""
    row_N: Tensor
    """int64 rows that are the training images."""

    def take(self, index_B: Tensor) -> Tensor:
        """uint8 pixels [B, 3, S, S] of int64 indices into the training images."""
        return self.pixel_R3SS[self.row_N[index_B]]


def pixels_recipe(source: Source, image_spec: ImageSpec, data: DataSettings, encoding: PixelEncoding = "raw") -> Recipe:
    """What the pixels depend on: the images, how they are read, and how they are stored; no model."""
    stored = {} if encoding == "raw" else {"encoding": encoding}
    return Recipe(kind=KIND, settings=image_settings(image_spec, data) | stored, inputs=(source.identity,))


def load_pixels(artefact: Artefact, cache_gb: float) -> Pixels:
    """The pixels of a source; images in error are zeros.

    Args:
        artefact: Finished pixels.
        cache_gb: 10^9 bytes; a set that has no more is read into memory, once for all who ask in this process.
    """
    stored = StoredPixels(artefact)
    if len(stored) * stored.row_bytes > cache_gb * 1e9:
        return stored
    return load_once(artefact, "pixels", lambda: _read(artefact, (len(stored), 3, stored.side_px, stored.side_px)))


def _read(artefact: Artefact, shape: tuple[int, int, int, int]) -> Tensor:
    pixel_N3SS, start = np.zeros(shape, dtype=np.uint8), 0
    for table in artefact.iter_tables(["pixel"]):
        pixel_N3SS[start : start + table.num_rows] = pixels_of(table)
        start += table.num_rows
    return torch.from_numpy(pixel_N3SS)


def pixels_of(
    table: pa.Table, rows_M: np.ndarray[Any, np.dtype[np.int64]] | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The column ``pixel`` as a uint8 array [M, 3, S, S]; rows in error are zeros.

    Args:
        table: Of stored pixels, raw or encoded.
        rows_M: Those that are wanted; None: all.
    """
    column = table["pixel"].combine_chunks()
    if not pa.types.is_fixed_size_binary(column.type):
        wanted = column if rows_M is None else column.take(pa.array(rows_M))
        return _decoded(wanted, int(table.schema.field("pixel").metadata[DECODED_BYTES]))
    width = column.type.byte_width
    side = int((width // 3) ** 0.5)
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8, count=len(column) * width, offset=column.offset * width)
    pixel_N3SS = flat.reshape(len(column), 3, side, side)
    return pixel_N3SS if rows_M is None else pixel_N3SS[rows_M]


def encoded(table: pa.Table, encoding: PixelEncoding) -> pa.Table:
    """The table with WebP or JPEG files in place of its raw column ``pixel``; rows in error stay null."""
    if encoding == "raw":
        return table
    at, column = table.schema.get_field_index("pixel"), table["pixel"].combine_chunks()
    valid_N = column.is_valid().to_pylist()
    files = [_file(one, encoding) if valid else None for one, valid in zip(pixels_of(table), valid_N, strict=True)]
    field = pa.field("pixel", pa.binary(), metadata={DECODED_BYTES: str(column.type.byte_width)})
    return table.set_column(at, field, pa.array(files, pa.binary()))


def _file(pixel_3SS: np.ndarray[Any, np.dtype[np.uint8]], encoding: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixel_3SS.transpose(1, 2, 0))).save(sink, **_FORMATS[encoding])
    return sink.getvalue()


def _decoded(column: pa.Array, row_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Of a column of files; Pillow leaves the interpreter to other threads meanwhile."""
    side = int((row_bytes // 3) ** 0.5)
    pixel_N3SS = np.zeros((len(column), 3, side, side), dtype=np.uint8)
    for pixel_3SS, file in zip(pixel_N3SS, column, strict=True):
        if file.is_valid:
            with Image.open(io.BytesIO(file.as_py())) as image:
                pixel_3SS[:] = np.asarray(image).transpose(2, 0, 1)
    return pixel_N3SS
