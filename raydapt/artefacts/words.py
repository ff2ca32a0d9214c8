"""A word for each of many images, as Arrow keeps them: a third of what a list of Python's strings takes.

Legend: N images, M some of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

_CHUNK = 65_536


class Words(Sequence[str]):
    """N words: a sequence of strings, of which no string exists before it is asked for."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """Keeps the column as it is, without nulls."""
        self.column = column

    def __len__(self) -> int:
        """N."""
        return len(self.column)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        """One word, or those of a slice."""
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        word: str = self.column[at].as_py()
        return word

    def __iter__(self) -> Iterator[str]:
        """All words, some thousands of strings at a time."""
        for start in range(0, len(self), _CHUNK):
            yield from self.column.slice(start, _CHUNK).to_pylist()

    def __eq__(self, other: object) -> bool:
        """Whether the words are the same."""
        return isinstance(other, Words) and self.column.equals(other.column)

    __hash__ = None  # type: ignore[assignment]


def column_of(words: Sequence[str]) -> pa.ChunkedArray:
    """Words as a column of strings."""
    return words.column if isinstance(words, Words) else pa.chunked_array([pa.array(words, pa.string())])


def words_at(words: Sequence[str], row_M: Tensor | npt.NDArray[np.int64]) -> pa.ChunkedArray:
    """The words of int64 rows as a column of strings; null for a row below 0."""
    rows = np.asarray(row_M)
    return column_of(words).take(pa.array(rows, mask=rows < 0))


def shared(words: Iterable[str | None]) -> list[str | None]:
    """A list of the words, equal ones as one object: of labels and splits it then takes 8 bytes an image."""
    known: dict[str | None, str | None] = {}
    return [known.setdefault(word, word) for word in words]
