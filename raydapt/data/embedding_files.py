"""One file of image features, opened: Parquet, ``.npy`` with what lies beside it, or ``.npz``.

Whatever the format, `FeatureFile.take` gives the unit vectors and the words of a range of rows, and holds no more than
that range. Ranges are asked for from front to back.

Legend: N rows of a range, D width.
"""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydapt.data.arrays import ArrayRows, open_array, texts_of_array
from raydapt.data.columns import Columns, find_feature_columns
from raydapt.data.files import first_line
from raydapt.data.vectors import Vectors, unit_vectors, vectors_of_column
from raydapt.errors import UserError

WORDS = ("id", "label", "split", "path")
FILE_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException)
_BATCH_ROWS = 1024
_NOWHERE = -1
_MEMBERS = {
    "feature": ("feature", "features", "embedding", "embeddings", "image_features", "img_emb"),
    "label": ("label", "labels", "target", "targets"),
    "id": ("id", "ids"),
    "split": ("split", "splits"),
    "path": ("path", "paths", "image_path"),
}
"""What the arrays of an ``.npz`` archive may be called."""


@dataclass(frozen=True, kw_only=True)
class FeatureRows:
    """A range of rows."""

    vectors: Vectors
    words: Mapping[str, Sequence[str | None]]
    """Of each of `WORDS`, N entries."""


class FeatureFile(ABC):
    """A file of features, open until it is left as a context."""

    rows: int
    width: int
    label_names: tuple[str, ...] = ()
    known: frozenset[str]
    """Which of `WORDS` the file tells."""

    def __init__(self, open_files: ExitStack) -> None:
        self.open_files = open_files

    @abstractmethod
    def take(self, start: int, stop: int) -> FeatureRows:
        """The rows from `start` up to `stop`; one of `FILE_ERRORS` if they cannot be read."""

    @abstractmethod
    def texts(self, word: str) -> Iterator[str | None]:
        """All labels or splits, without reading the features."""

    def __enter__(self) -> "FeatureFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.open_files.close()


class TableRows:
    """Rows of a Parquet file, taken from front to back in batches; row groups that are not asked for are not read."""

    def __init__(self, open_files: ExitStack, filesystem: Any, path: str, *, beside: bool = False) -> None:
        handle = open_files.enter_context(filesystem.open(path, "rb"))
        self.file = open_files.enter_context(pq.ParquetFile(handle, buffer_size=1 << 20, pre_buffer=False))
        self.columns: Columns = find_feature_columns(self.file.schema_arrow, path, beside=beside)
        metadata = self.file.metadata
        self.rows = metadata.num_rows
        self._group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._batches: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._held: tuple[int, pa.RecordBatch] | None = None
        self._at = _NOWHERE
        """First row of the batch that is held, or else of the one that comes next."""

    def take(self, start: int, stop: int) -> pa.Table:
        """The rows from `start` up to `stop`."""
        if not self._at <= start < self._group_end(self._at):
            self._batches, self._held = self._from_group_of(start), None
        pieces, position = [], start
        while position < stop:
            self._held = self._held or next(self._batches, None)
            if self._held is None:
                self._at = _NOWHERE
                raise ValueError(f"the table ends before row {stop}")
            first, batch = self._held
            end = first + batch.num_rows
            if end > position:
                pieces.append(batch.slice(position - first, min(stop, end) - position))
                position = min(stop, end)
            self._at = first
            if end <= stop:
                self._held, self._at = None, end
        return pa.Table.from_batches(pieces)

    def words(self, table: pa.Table) -> dict[str, list[str | None]]:
        """What a range of rows tells, by `WORDS`."""
        columns, rows = self.columns, table.combine_chunks().to_batches()[0]
        return {
            "id": columns.ids(rows),
            "label": columns.labels(rows),
            "split": columns.splits(rows, None),
            "path": columns.paths(rows),
        }

    @property
    def known(self) -> frozenset[str]:
        """Which of `WORDS` there are."""
        return frozenset(word for word in WORDS if getattr(self.columns, word))

    def texts(self, word: str) -> Iterator[str | None]:
        """All labels or splits; their column alone is read."""
        name = self.columns.label if word == "label" else self.columns.split
        if name is not None:
            for batch in self.file.iter_batches(1 << 16, columns=[name]):
                yield from self.columns.labels(batch) if word == "label" else self.columns.splits(batch, None)

    def _group_end(self, row: int) -> int:
        return next((end for _, start, end in self._groups() if start <= row < end), _NOWHERE)

    def _groups(self) -> Iterator[tuple[int, int, int]]:
        start = 0
        for group, rows in enumerate(self._group_rows):
            yield group, start, start + rows
            start += rows

    def _from_group_of(self, row: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        for group, start, end in self._groups():
            if end <= row:
                continue
            for batch in self.file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=self.columns.wanted):
                yield start, batch
                start += batch.num_rows


class _Table(FeatureFile):
    def __init__(self, open_files: ExitStack, filesystem: Any, path: str) -> None:
        super().__init__(open_files)
        self._table = TableRows(self.open_files, filesystem, path)
        self.rows, self.known = self._table.rows, self._table.known
        self.label_names = self._table.columns.label_names
        self.width = self._width(path)

    def _width(self, path: str) -> int:
        """Of a fixed-size list, else of the first row that is there."""
        name = self._table.columns.image
        kind = self._table.file.schema_arrow.field(name).type
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        for batch in self._table.file.iter_batches(_BATCH_ROWS, columns=[name]):
            lengths = pc.drop_null(pc.list_value_length(batch.column(name)))
            if len(lengths):
                return int(lengths[0].as_py())
        if self.rows:
            raise UserError(f"{path!r}: the column {name!r} has no vector in any of {self.rows} rows: fill it.")
        return 0

    def take(self, start: int, stop: int) -> FeatureRows:
        table = self._table.take(start, stop)
        column = table[self._table.columns.image].combine_chunks()
        return FeatureRows(vectors=vectors_of_column(column, self.width), words=self._table.words(table))

    def texts(self, word: str) -> Iterator[str | None]:
        return self._table.texts(word)


class _Arrays(FeatureFile):
    """Features and words in arrays of the same length."""

    def _set(self, feature: ArrayRows, words: Mapping[str, ArrayRows]) -> None:
        self._feature, self._words = feature, words
        if len(feature.shape) != 2 or feature.dtype.kind != "f":
            raise UserError(
                f"{feature.name!r} is an array of shape {list(feature.shape)} and type {feature.dtype}: features are "
                "floats of shape [images, width]."
            )
        for word, array in words.items():
            if len(array.shape) != 1 or array.dtype.kind not in "iuUS":
                raise UserError(f"{array.name!r} must be a list of texts or whole numbers, one {word} for each image.")
            check_as_many(array.name, array.rows, feature.name, feature.rows)
        self.rows, self.width = feature.shape
        self.known = frozenset(words)

    def take(self, start: int, stop: int) -> FeatureRows:
        words = {word: texts_of_array(array.take(start, stop)) for word, array in self._words.items()}
        nothing: list[str | None] = [None] * (stop - start)
        return FeatureRows(
            vectors=unit_vectors(self._feature.take(start, stop)), words=dict.fromkeys(WORDS, nothing) | words
        )

    def texts(self, word: str) -> Iterator[str | None]:
        if word in self._words:
            for start in range(0, self.rows, 1 << 16):
                yield from texts_of_array(self._words[word].take(start, min(start + (1 << 16), self.rows)))


class _Array(_Arrays):
    """An ``.npy`` file, with a table or an array of labels beside it."""

    def __init__(self, open_files: ExitStack, filesystem: Any, path: str, beside: str | None) -> None:
        super().__init__(open_files)
        feature = self._open(filesystem, path)
        labels = {"label": self._open(filesystem, beside)} if beside and beside.endswith(".npy") else {}
        self._set(feature, labels)
        self._table: TableRows | None = None
        if beside and not labels:
            self._table = TableRows(self.open_files, filesystem, beside, beside=True)
            self.known, self.label_names = self._table.known, self._table.columns.label_names
            check_as_many(beside, self._table.rows, path, self.rows)
        needed = feature.offset + feature.rows * self.width * feature.dtype.itemsize
        if filesystem.size(path) < needed:
            raise UserError(f"{path!r} is cut off: its header tells of {needed} bytes; copy or save it anew.")

    def _open(self, filesystem: Any, path: str) -> ArrayRows:
        return open_array(self.open_files.enter_context(filesystem.open(path, "rb")), path)

    def take(self, start: int, stop: int) -> FeatureRows:
        rows = super().take(start, stop)
        if self._table is None or not self.known:
            return rows
        return FeatureRows(vectors=rows.vectors, words=self._table.words(self._table.take(start, stop)))

    def texts(self, word: str) -> Iterator[str | None]:
        return super().texts(word) if self._table is None else self._table.texts(word)


class _Archive(_Arrays):
    """An ``.npz`` file."""

    def __init__(self, open_files: ExitStack, filesystem: Any, path: str) -> None:
        super().__init__(open_files)
        archive = self.open_files.enter_context(
            zipfile.ZipFile(self.open_files.enter_context(filesystem.open(path, "rb")))
        )
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        found = {key: next((n for n in known if n in names), None) for key, known in _MEMBERS.items()}
        if found["feature"] is None:
            raise UserError(f"{path!r} holds the arrays {', '.join(names)}: one of them must be called 'feature'.")
        arrays = {
            key: open_array(open_files.enter_context(archive.open(f"{name}.npy")), f"{path}[{name}]")
            for key, name in found.items()
            if name
        }
        self._set(arrays.pop("feature"), arrays)


def open_features(filesystem: Any, path: str, beside: str | None = None) -> FeatureFile:
    """Opens a file of features by its suffix.

    Args:
        filesystem: Of fsspec.
        path: In the file system.
        beside: An ``.npy`` array of labels or a Parquet table, of the same rows as an ``.npy`` array of features.

    Raises:
        UserError: If it is not what its name says, or what it holds does not fit together.
    """
    open_files = ExitStack()
    try:
        if path.lower().endswith(".npy"):
            return _Array(open_files, filesystem, path, beside)
        return (_Archive if path.lower().endswith(".npz") else _Table)(open_files, filesystem, path)
    except UserError:
        open_files.close()
        raise
    except FILE_ERRORS as error:
        open_files.close()
        raise UserError(f"{path!r} cannot be read as what its name says ({first_line(error)}).") from None


def check_as_many(name: str, rows: int, of: str, wanted: int) -> None:
    """Refuses files that belong together and differ in length, with a `UserError`."""
    if rows != wanted:
        raise UserError(f"{name!r} has {rows} rows, and {of!r}, which it belongs to, has {wanted}: make both anew.")
