"""Images in the rows of Parquet files, and of the Arrow files that ``datasets.save_to_disk`` writes."""

import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.data.columns import Columns, NoImageColumnError, find_columns, image_cells
from raydapt.data.files import Found, Listing, first_line, is_local, open_filesystem, split_of_name
from raydapt.data.folders import read_files
from raydapt.data.parts import UNREADABLE, Part, RowLabels, Source, make_rows, new_digest
from raydapt.errors import UserError

_FOOTER_READERS = 8
_BATCH_ROWS = 256
_LABEL_ROWS = 1 << 16
_MOST_LABEL_NAMES = 100_000
_FILE_ERRORS = (OSError, ValueError, pa.ArrowException)


@dataclass(frozen=True, kw_only=True)
class _File:
    """What planning needs to know of a file."""

    name: str
    kind: Literal["parquet", "arrow"]
    group_rows: tuple[int, ...]
    columns: Columns
    digest: str
    labels: "_Labels"


class _Labels(NamedTuple):
    """The label and split columns of a file; they may be corrected in place without a trace in the footer."""

    digest: str
    """Of both columns, or what stands for it; empty where there are none."""
    labels: list[str | None] | None = None
    """None where they were not read."""


class _Cell(NamedTuple):
    """A row as it is read."""

    image: bytes | None
    label: str | None
    split: str | None
    path: str
    error: str | None


def plan(found: Listing, *, rows_per_part: int, limit: int | None) -> Source:
    """Cuts files into parts; of Parquet files the footers and the labels are read and nothing else.

    Labels of files elsewhere are not read if the file system tells when, or into what, a file changed.

    Raises:
        UserError: If a file is not what its name says, or has no image column.
    """
    digest, label_digest = new_digest(rows_per_part, limit), hashlib.sha256()
    parts: list[Part] = []
    files: list[_File] = []
    counts: Counter[str] | None = Counter()
    rows, left = 0, limit
    without: list[str] = []
    for file in _inspect_all(found, sequential=limit is not None):
        if isinstance(file, NoImageColumnError):
            without.append(str(file))
            continue
        files.append(file)
        digest.update(f"{file.name}\0{file.digest}\n".encode("utf-8", "surrogateescape"))
        label_digest.update(f"{file.name}\0{file.labels.digest}\n".encode("utf-8", "surrogateescape"))
        for start, stop, groups in _cut(file.group_rows, rows_per_part):
            if left is not None:
                stop = min(stop, start + left)
                left -= stop - start
            if stop > start:
                parts.append(Part(index=len(parts), kind=file.kind, root=found.root, uris=(file.name,), start=start,
                                  stop=stop, first_row=rows, rows=stop - start, groups=groups))  # fmt: skip
                rows += stop - start
                counts = _count(counts, file, start, stop)
        if left == 0:
            break
    if without and not files:
        raise NoImageColumnError(without[0])
    if not parts:
        raise UserError(f"data.source={found.uri!r}: the Parquet files there have no rows.")
    splits = {split_of_name(file.name) for file in files if file.columns.split is None}
    return Source(
        uri=found.uri,
        kind=files[0].kind,
        parts=tuple(parts),
        rows=rows,
        identity=digest.hexdigest(),
        label_counts=None if counts is None else tuple(sorted(counts.items())),
        label_identity=label_digest.hexdigest() if any(file.labels.digest for file in files) else "",
        label_names=max((file.columns.label_names for file in files), key=len),
        notes=tuple(_notes(files, without)),
        names_files=any(file.columns.names_files for file in files),
        has_labels=any(file.columns.label is not None for file in files),
        splits=tuple(sorted(split for split in splits if split is not None)),
    )


def read(parts: Sequence[Part], max_bytes: int) -> Iterator[tuple[Part, pa.Table]]:
    """Reads parts of one file, going through their rows once; rows that cannot be read have an error."""
    name = parts[0].uris[0]
    with closing(_cells(parts, max_bytes)) as cells:
        for part in parts:
            rows: list[_Cell] = []
            with suppress(*_FILE_ERRORS):  # the rows that are missing then say so themselves
                rows.extend(islice(cells, part.rows))
            split = split_of_name(name)
            for row in range(part.start + len(rows), part.start + (part.rows or 0)):
                rows.append(_Cell(None, None, split, f"{name}#{row}", UNREADABLE))
            images, labels, splits, paths, errors = zip(*rows, strict=True)
            yield (
                part,
                make_rows(part, images, paths, labels=labels, splits=splits, errors=errors, max_bytes=max_bytes),
            )


def read_row_labels(source: Source) -> RowLabels:
    """The labels and splits of all rows, read anew.

    Raises:
        UserError: If a file can no longer be read as it was found.
    """
    filesystem, root = open_filesystem(source.parts[0].root)
    labels: list[str | None] = []
    splits: list[str | None] = []
    of_file: dict[str, RowLabels] = {}
    for part in source.parts:
        uri = part.uris[0]
        if uri not in of_file:
            try:
                of_file = {uri: _read_labels(filesystem, _join(root, uri), uri)}
            except _FILE_ERRORS as error:
                raise UserError(f"{uri!r}: the labels cannot be read ({first_line(error)}): mend the file.") from None
        labels += of_file[uri].labels[part.start : part.stop]
        splits += of_file[uri].splits[part.start : part.stop]
    if len(labels) != source.rows:
        raise UserError(f"data.source={source.uri!r} changed while it was read: run the same command again.")
    return RowLabels(labels=labels, splits=splits)


def label_names(source: Source) -> set[str]:
    """All labels in the label columns, which alone are read.

    Raises:
        UserError: If they are too many to be class names, or cannot be read.
    """
    filesystem, root = open_filesystem(source.parts[0].root)
    names: set[str] = set()
    for uri in dict.fromkeys(part.uris[0] for part in source.parts):
        try:
            for columns, _, batch in _batches(filesystem, _join(root, uri), None, labels_only=True):
                names.update(label for label in columns.labels(batch) if label is not None)
                if len(names) > _MOST_LABEL_NAMES:
                    raise UserError(
                        f"{uri!r}: the column {columns.label!r} has more than {_MOST_LABEL_NAMES} different values, "
                        "which are no class names: set data.class_names."
                    )
        except _FILE_ERRORS as error:
            raise UserError(f"{uri!r}: the labels cannot be read ({error}): set data.class_names.") from None
    return names


def _read_labels(filesystem: Any, path: str, name: str) -> RowLabels:
    """The label and split columns of one file."""
    labels: list[str | None] = []
    splits: list[str | None] = []
    for columns, _, batch in _batches(filesystem, path, None, labels_only=True):
        labels += columns.labels(batch)
        splits += columns.splits(batch, split_of_name(name))
    return RowLabels(labels=labels, splits=splits)


def _inspect_labels(filesystem: Any, path: str, table: Found, columns: Columns) -> _Labels:
    if columns.label is None and columns.split is None:
        return _Labels("")
    if table.stamp and not is_local(filesystem):
        return _Labels(table.line.hex())
    try:
        found = _read_labels(filesystem, path, table.name)
    except _FILE_ERRORS:  # its rows will say so themselves
        return _Labels("unreadable")
    digest = hashlib.sha256()
    for start in range(0, len(found.labels), _LABEL_ROWS):
        piece = slice(start, start + _LABEL_ROWS)
        digest.update(json.dumps([found.labels[piece], found.splits[piece]]).encode())
    return _Labels(digest.hexdigest(), list(found.labels))


def _count(counts: Counter[str] | None, file: _File, start: int, stop: int) -> Counter[str] | None:
    """Adds the labels of some rows of a file; None if they are not known, or too many to be names."""
    if counts is None or (file.labels.labels is None and file.columns.label is not None):
        return None
    counts.update(label for label in (file.labels.labels or [])[start:stop] if label is not None)
    return counts if len(counts) <= _MOST_LABEL_NAMES else None


def _cells(parts: Sequence[Part], max_bytes: int) -> Generator[_Cell]:
    """All rows of parts that lie in one file."""
    filesystem, root = open_filesystem(parts[0].root)
    name = parts[0].uris[0]
    groups = parts[0].groups if parts[0].kind == "parquet" else None
    for columns, position, batch in _batches(filesystem, _join(root, name), groups):
        for part in parts:
            low = max(part.start - position, 0)
            high = min((part.stop or 0) - position, batch.num_rows)
            if low < high:
                piece = batch.slice(low, high - low)
                images, paths = image_cells(piece.column(columns.image))
                shown = [path or f"{name}#{position + low + i}" for i, path in enumerate(paths)]
                errors = _fetch(filesystem, _join(root, posixpath.dirname(name)), images, paths, max_bytes)
                splits = columns.splits(piece, split_of_name(name))
                yield from map(_Cell, images, columns.labels(piece), splits, shown, errors)


def _fetch(
    filesystem: Any, folder: str, images: list[bytes | None], paths: list[str | None], max_bytes: int
) -> list[str | None]:
    """Reads the images (in place) that are only named by a path, relative to the table's folder; gives their errors."""
    errors: list[str | None] = [None] * len(images)
    wanted = {i: path for i, path in enumerate(paths) if path and images[i] is None}
    # A table from elsewhere may name any address: nothing outside the table's own file system is asked for.
    inside = {i: _join(folder, path) for i, path in wanted.items() if "://" not in path}
    for i in wanted.keys() - inside.keys():
        own, path = open_filesystem(wanted[i])
        if type(own) is type(filesystem):
            inside[i] = path
        else:
            errors[i] = UNREADABLE
    for i, (image, error) in zip(inside, read_files(filesystem, list(inside.values()), max_bytes), strict=True):
        images[i], errors[i] = image, error
    return errors


def _batches(
    filesystem: Any, path: str, groups: tuple[int, int] | None, *, labels_only: bool = False
) -> Iterator[tuple[Columns, int, pa.RecordBatch]]:
    """The columns, the row number of the first row, and the rows of a file, in batches of bounded size."""
    if path.endswith(".arrow"):
        with _open_arrow(path) as reader:
            columns, position = find_columns(reader.schema, path), 0
            for batch in reader:
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield columns, position + start, batch.slice(start, _BATCH_ROWS)
                position += batch.num_rows
        return
    with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle, buffer_size=1 << 20, pre_buffer=False) as file:
        columns = find_columns(file.schema_arrow, path)
        first, last = groups or (0, file.num_row_groups)
        position = sum(file.metadata.row_group(i).num_rows for i in range(first))
        wanted = [name for name in columns.wanted if name != columns.image] if labels_only else columns.wanted
        size = _LABEL_ROWS if labels_only else _BATCH_ROWS
        for batch in file.iter_batches(size, row_groups=range(first, last), columns=wanted):
            yield columns, position, batch
            position += batch.num_rows


def _notes(files: Sequence[_File], without: Sequence[str]) -> Iterator[str]:
    """What a person must know of tables and columns that are not read."""
    if without:
        tables = "1 table" if len(without) == 1 else f"{len(without):,} tables"
        yield f"{tables} without a column of images beside the others were left out: {without[0]}"
    ignored = sorted({file.columns.ignored_label for file in files if file.columns.ignored_label})
    if ignored:
        yield f"The column {ignored[0]} holds no labels that can be read, so the images count as unlabelled."
    if not any(file.columns.label for file in files) and (other := files[0].columns.other):
        columns = ", ".join(other[:8])
        yield f"No column is called as labels are ({columns}): call it 'label' if one of them holds the classes."


def _inspect_all(found: Listing, *, sequential: bool) -> Iterator[_File | NoImageColumnError]:
    filesystem, root = open_filesystem(found.root)
    if sequential or len(found.tables) == 1:
        yield from (_inspect(filesystem, root, table) for table in found.tables)
        return
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        yield from readers.map(lambda table: _inspect(filesystem, root, table), found.tables)


def _inspect(filesystem: Any, root: str, table: Found) -> _File | NoImageColumnError:
    path = _join(root, table.name)
    try:
        if path.endswith(".arrow"):
            return _inspect_arrow(filesystem, path, table)
        with filesystem.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
            metadata, columns = file.metadata, find_columns(file.schema_arrow, path)
            group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            digest = _footer_digest(handle)
        labels = _inspect_labels(filesystem, path, table, columns)
        return _File(
            name=table.name, kind="parquet", group_rows=group_rows, columns=columns, digest=digest, labels=labels
        )
    except NoImageColumnError as error:
        return error
    except _FILE_ERRORS as error:
        raise UserError(f"{path!r} cannot be read as what its name says ({first_line(error)}).") from None


def _inspect_arrow(filesystem: Any, path: str, table: Found) -> _File:
    if not is_local(filesystem):
        raise UserError(f"{path!r}: Arrow files are read from local folders alone: save the set as Parquet.")
    with _open_arrow(path) as reader:
        columns = find_columns(reader.schema, path)
        return _File(
            name=table.name,
            kind="arrow",
            group_rows=(sum(batch.num_rows for batch in reader),),
            columns=columns,
            digest=table.line.hex(),
            labels=_inspect_labels(filesystem, path, table, columns),
        )


def _open_arrow(path: str) -> pa.ipc.RecordBatchStreamReader:
    """Mapped into memory: going over rows that are not wanted reads nothing."""
    return pa.ipc.open_stream(pa.memory_map(path))


def _footer_digest(handle: Any) -> str:
    """Digest of a Parquet footer, which has the sizes and statistics of everything in the file."""
    handle.seek(-8, 2)
    length = int.from_bytes(handle.read(4), "little")
    handle.seek(-8 - length, 2)
    return hashlib.sha256(handle.read(length)).hexdigest()


def _cut(group_rows: Sequence[int], rows_per_part: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(start, stop, row groups): small row groups are put together, large ones cut into pieces."""
    position = start = first = 0
    for i, rows in enumerate(group_rows):
        if position > start and position + rows - start > rows_per_part:
            yield start, position, (first, i)
            start, first = position, i
        position += rows
        if rows > rows_per_part:
            for piece in range(start, position, rows_per_part):
                yield piece, min(piece + rows_per_part, position), (i, i + 1)
            start, first = position, i + 1
    if position > start:
        yield start, position, (first, len(group_rows))


def _join(folder: str, name: str) -> str:
    return posixpath.join(folder, name)
