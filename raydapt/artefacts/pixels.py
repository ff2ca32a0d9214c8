"""The decoded images of a source: what they depend on, and how they are read without a copy of the whole.

Legend: N images, R images of the source, B batch, S image side in px.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from raydapt.artefacts.features import image_settings
from raydapt.artefacts.loaded import load_once
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "pixels"
SCRATCH = Path(gettempdir()) / f"raydapt-pixels-{getattr(os, 'getuid', int)()}"
"""Where pixels that do not fit in memory are laid out, on each machine; each user has a folder."""
_LARGEST_IN_MEMORY = 1024**3


@dataclass(frozen=True)
class PixelRows:
    """Some rows of a larger array of pixels, which may be mapped from disk and is never copied as a whole."""

    pixel_R3SS: Tensor
    """uint8 pixels of all R images of the source."""
    row_N: Tensor
    """int64 rows that are the training images."""

    def take(self, index_B: Tensor) -> Tensor:
        """uint8 pixels [B, 3, S, S] of int64 indices into the training images."""
        return self.pixel_R3SS[self.row_N[index_B]]


def pixels_recipe(source: Source, image_spec: ImageSpec, data: DataSettings) -> Recipe:
    """What the pixels depend on: the images and how they are read; no model."""
    return Recipe(kind=KIND, settings=image_settings(image_spec, data), inputs=(source.identity,))


def load_pixels(artefact: Artefact, cache_folder: str | Path, *, largest_in_memory: int = _LARGEST_IN_MEMORY) -> Tensor:
    """The pixels as a uint8 tensor [N, 3, S, S]; images in error are zeros.

    Args:
        artefact: Finished pixels.
        cache_folder: A local folder; more than ``largest_in_memory`` bytes are laid out there in one ``.npy`` file
            and mapped into memory, by every process of the machine the same pages.
        largest_in_memory: Bytes that are simply read into memory.
    """
    rows, side = artefact.manifest.rows, int(artefact.manifest.settings["image"]["size_px"])
    shape = (rows, 3, side, side)
    if rows * 3 * side * side <= largest_in_memory:
        return load_once(artefact, "pixels", lambda: _read(artefact, shape))
    target = Path(cache_folder) / f"{artefact.kind}-{artefact.fingerprint}.npy"
    if not target.exists():
        temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mapped = open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)  # type: ignore[no-untyped-call,unused-ignore]
            _reserve(temporary)
            _fill(artefact, mapped)
            temporary.replace(target)
        except OSError as error:
            raise UserError(
                f"The decoded images ({rows * 3 * side * side / 1024**3:.1f} GiB) cannot be laid out in "
                f"{str(target.parent)!r} ({error.strerror}): free space there, or set TMPDIR to another folder."
            ) from None
        finally:
            temporary.unlink(missing_ok=True)
    # Copy-on-write: torch wants a writable array, and the file must stay as it is.
    return torch.from_numpy(np.load(target, mmap_mode="c"))


def _read(artefact: Artefact, shape: tuple[int, int, int, int]) -> Tensor:
    pixel_N3SS = np.zeros(shape, dtype=np.uint8)
    _fill(artefact, pixel_N3SS)
    return torch.from_numpy(pixel_N3SS)


def _reserve(path: Path) -> None:
    """Takes the space of a file now: on a full disk that is an error, and writing pages the end of the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _fill(artefact: Artefact, pixel_N3SS: np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]) -> None:
    start = 0
    for table in artefact.iter_tables(["pixel"]):
        pixel_N3SS[start : start + table.num_rows] = pixels_of(table)
        start += table.num_rows


def pixels_of(table: pa.Table) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The column ``pixel`` as a read-only uint8 array [N, 3, S, S]; rows in error are zeros."""
    column = table["pixel"].combine_chunks()
    width = column.type.byte_width
    side = int((width // 3) ** 0.5)
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8, count=len(column) * width, offset=column.offset * width)
    return flat.reshape(len(column), 3, side, side)
