"""Rows of numpy's arrays, read range by range from any file system; pickles are never opened."""

import math
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from raydapt.errors import UserError

_READ_HEADER: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True)
class ArrayRows:
    """An array that lies in an open file. One reader at a time: reading moves the file's position."""

    handle: IO[bytes]
    name: str
    """For sentences about it."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    """Bytes before the first value."""

    @property
    def rows(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    def take(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The rows from `start` up to `stop`.

        Raises:
            ValueError: If the file ends before.
        """
        row_shape = self.shape[1:]
        row_bytes = math.prod(row_shape) * self.dtype.itemsize
        self.handle.seek(self.offset + start * row_bytes)
        data = self.handle.read((stop - start) * row_bytes)
        if len(data) != (stop - start) * row_bytes:
            raise ValueError(f"{self.name!r} ends before row {stop}")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *row_shape)


def open_array(handle: IO[bytes], name: str) -> ArrayRows:
    """Reads the header of an ``.npy`` file.

    Args:
        handle: Open for reading; it stays open, and must be able to seek.
        name: Of the file, for sentences about it.

    Raises:
        UserError: If it is no ``.npy`` file, or holds Python objects, which only unpickling (and so running) can read.
    """
    try:
        version = npy.read_magic(handle)  # type: ignore[no-untyped-call]
        if version not in _READ_HEADER:
            raise ValueError(f"version {version} of the format")
        shape, fortran_order, dtype = _READ_HEADER[version](handle)
    except (ValueError, OSError, EOFError) as error:
        reason = (str(error).strip().splitlines() or ["nothing in it"])[0].rstrip(".")
        raise UserError(f"{name!r} is no readable .npy array ({reason}): save it anew with numpy.save.") from None
    if dtype.hasobject:
        raise UserError(
            f"{name!r} holds Python objects, which are never unpickled: save it as plain numbers or text, such as "
            "numpy.save(path, numpy.stack(list_of_vectors))."
        )
    if fortran_order and len(shape) > 1 and 1 not in shape:
        raise UserError(f"{name!r} lies column by column: save numpy.ascontiguousarray(array), whose rows can be read.")
    if not shape:
        raise UserError(f"{name!r} is a single number: give an array with a row for each image.")
    return ArrayRows(handle=handle, name=name, shape=tuple(shape), dtype=dtype, offset=handle.tell())


def texts_of_array(value_N: npt.NDArray[Any]) -> list[str | None]:
    """Labels and the like as text; a negative number is none."""
    texts: list[str | None] = []
    for value in value_N.tolist():
        if isinstance(value, bytes):
            texts.append(value.decode("utf-8", "backslashreplace"))
        else:
            texts.append(None if isinstance(value, int) and value < 0 else str(value))
    return texts
