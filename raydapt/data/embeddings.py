"""Image features in place of images: Parquet with a column ``feature``, clip-retrieval's folders, ``.npy``, ``.npz``.

Planned from footers and headers, read part by part. Vectors come out at unit length; a row whose vector cannot be used
has an error, as an image that cannot be read has.

Legend: N rows of a part, D width.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.data.columns import feature_column, image_column
from raydapt.data.decode import image_id
from raydapt.data.embedding_files import FILE_ERRORS, WORDS, FeatureFile, FeatureRows, open_features
from raydapt.data.files import Found, Listing, is_local, open_filesystem, split_of_name
from raydapt.data.parts import UNREADABLE, Part, Source, new_digest, printable
from raydapt.data.vectors import Vectors
from raydapt.errors import UserError

KIND: Literal["features"] = "features"
CLASSES_FILE = "classes.parquet"
"""The class embeddings in a folder of features; of features ``x.parquet``, ``x.classes.parquet``."""
_MOST_LABEL_NAMES = 100_000
_RETRIEVAL = ("img_emb", "metadata")
"""The folders of clip-retrieval, whose files ``img_emb_7.npy`` and ``metadata_7.parquet`` belong together."""


class _Shard(NamedTuple):
    """A file of features, and the one that tells of its images."""

    found: Found
    beside: Found | None

    @property
    def uris(self) -> tuple[str, ...]:
        return (self.found.name,) if self.beside is None else (self.found.name, self.beside.name)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What planning needs to know of a file."""

    rows: int
    width: int
    label_names: tuple[str, ...]
    known: frozenset[str]
    digest: str


def holds_features(found: Listing) -> bool:
    """Whether what was listed is features: a table of features without images, or arrays and no images.

    Raises:
        UserError: If the first table cannot be read.
    """
    if found.images or found.tars:
        return False
    tables = [table for table in found.tables if table.name.endswith(".parquet")]
    if found.arrays or not tables:
        return bool(found.arrays)
    filesystem, root = open_filesystem(found.root)
    try:
        with filesystem.open(posixpath.join(root, tables[0].name), "rb") as handle:
            schema = pq.read_schema(handle)
    except FILE_ERRORS:
        return False  # reading it as a table of images says what is wrong with it
    return image_column(schema) is None and feature_column(schema) is not None


def plan(found: Listing, *, rows_per_part: int, limit: int | None) -> Source:
    """Cuts files of features into parts; their footers and headers are read and nothing else.

    Raises:
        UserError: If a file is not what its name says, holds no features, or features of another width.
    """
    filesystem, root = open_filesystem(found.root)
    digest, parts, seen = new_digest(rows_per_part, limit), list[Part](), list[tuple[_Shard, _Seen]]()
    rows, left = 0, limit
    for shard in _shards(found, filesystem, root):
        file = _inspect(filesystem, root, shard)
        if not file.rows:
            continue
        _check_width(shard, file, seen)
        seen.append((shard, file))
        digest.update(f"{shard.found.name}\0{file.digest}\n".encode("utf-8", "surrogateescape"))
        for start in range(0, file.rows if left is None else min(file.rows, left), rows_per_part):
            stop = min(start + rows_per_part, file.rows, start + (file.rows if left is None else left))
            parts.append(Part(index=len(parts), kind=KIND, root=found.root, uris=shard.uris, start=start, stop=stop,
                              first_row=rows, rows=stop - start, width=file.width))  # fmt: skip
            rows, left = rows + stop - start, None if left is None else left - (stop - start)
        if left == 0:
            break
    if not parts:
        raise UserError(f"data.source={found.uri!r}: there are no features in it.")
    splits = {split_of_name(shard.found.name) for shard, file in seen if "split" not in file.known}
    return Source(
        uri=found.uri,
        kind=KIND,
        parts=tuple(parts),
        rows=rows,
        identity=digest.hexdigest(),
        label_names=max((file.label_names for _, file in seen), key=len),
        has_labels=any("label" in file.known for _, file in seen),
        splits=tuple(sorted(split for split in splits if split is not None)),
        has_ids=all("id" in file.known for _, file in seen),
        width=parts[0].width,
        notes=("The source holds features in place of images, so there are no pictures to show.",),
    )


def read(parts: Sequence[Part]) -> Iterator[tuple[Part, pa.Table]]:
    """Reads parts, those of a file in one go from front to back.

    Yields:
        Each part with its table: row (number in the source), id, label, split, path, error, and feature, float32
        lists [D] of unit length, null where there is an error: one of `raydapt.data.vectors.BAD_VECTOR_REASONS`, or
        ``unreadable``.
    """
    by_file: dict[tuple[str, tuple[str, ...]], list[Part]] = {}
    for part in parts:
        by_file.setdefault((part.root, part.uris), []).append(part)
    for (address, uris), of_file in by_file.items():
        filesystem, root = open_filesystem(address)
        with open_features(filesystem, *(posixpath.join(root, uri) for uri in uris)) as file:
            for part in of_file:
                if file.width != part.width or file.rows < (part.stop or 0):
                    raise UserError(f"{uris[0]!r} changed while it was read: run the command again.")
                try:
                    rows = file.take(part.start, part.stop or 0)
                except FILE_ERRORS:
                    rows = _unreadable(part)
                yield part, _table(part, rows)


def label_names(source: Source) -> set[str]:
    """All labels of the features, which alone are read.

    Raises:
        UserError: If they are too many to be class names.
    """
    filesystem, root = open_filesystem(source.parts[0].root)
    names: set[str] = set()
    for uris in dict.fromkeys(part.uris for part in source.parts):
        with open_features(filesystem, *(posixpath.join(root, uri) for uri in uris)) as file:
            for label in file.texts("label"):
                if label is not None:
                    names.add(label)
                if len(names) > _MOST_LABEL_NAMES:
                    raise UserError(
                        f"{uris[-1]!r} has more than {_MOST_LABEL_NAMES} different labels, which are no class names: "
                        "set data.class_names."
                    )
    return names


def is_class_file(name: str) -> bool:
    """Whether a file holds class embeddings, by its name."""
    file = posixpath.basename(name).lower()
    return file == CLASSES_FILE or file.endswith("." + CLASSES_FILE)


def _shards(found: Listing, filesystem: Any, root: str) -> Iterator[_Shard]:
    """The files of features, each with what lies beside it."""
    emb, meta = _RETRIEVAL
    retrieval = [array for array in found.arrays if posixpath.basename(posixpath.dirname(array.name)) == emb]
    tables = {table.name: table for table in found.tables}
    if retrieval:
        has_metadata = any(posixpath.basename(posixpath.dirname(name)) == meta for name in tables)
        for array in retrieval:
            name = f"{meta}/{posixpath.basename(array.name).replace(emb, meta, 1).removesuffix('.npy')}.parquet"
            name = posixpath.join(posixpath.dirname(posixpath.dirname(array.name)), name)
            if has_metadata and name not in tables:
                raise UserError(f"{array.name!r} has no {name!r} beside it: run clip-retrieval's inference again.")
            yield _Shard(array, tables.get(name))
        return
    if found.arrays:
        names = {array.name: array for array in found.arrays} | tables
        for array in found.arrays:
            if not any(array.name.endswith(suffix) for suffix in _LABEL_SUFFIXES):
                yield _Shard(array, _beside(array.name, names, filesystem, root))
        return
    yield from (_Shard(table, None) for table in found.tables if not is_class_file(table.name))


_LABEL_SUFFIXES = ("_labels.npy", ".labels.npy")


def _beside(name: str, listed: dict[str, Found], filesystem: Any, root: str) -> Found | None:
    """Of ``x.npy``: ``x.parquet``, or labels in ``x_labels.npy``; where one file was given, they are asked for."""
    if not name.endswith(".npy"):
        return None
    stem = name.removesuffix(".npy")
    for candidate in (f"{stem}.parquet", *(stem + suffix for suffix in _LABEL_SUFFIXES)):
        if candidate in listed:
            return listed[candidate]
        if len(listed) == 1 and filesystem.exists(posixpath.join(root, candidate)):
            return Found(candidate, int(filesystem.size(posixpath.join(root, candidate)) or 0), "")
    return None


def _inspect(filesystem: Any, root: str, shard: _Shard) -> _Seen:
    paths = [posixpath.join(root, uri) for uri in shard.uris]
    with open_features(filesystem, *paths) as file:
        digests = [_digest(filesystem, path, found) for path, found in zip(paths, shard, strict=False) if found]
        return _Seen(
            rows=file.rows,
            width=file.width,
            label_names=file.label_names,
            known=file.known,
            digest="".join([*digests, *(_text_digests(file) if is_local(filesystem) else ())]),
        )


def _text_digests(file: FeatureFile) -> Iterator[str]:
    """Of labels and splits: they may be corrected in place without a trace in footers, sizes and headers."""
    for word in sorted(file.known & {"label", "split"}):
        digest = hashlib.sha256()
        with suppress(*FILE_ERRORS):  # the rows will say so themselves
            for text in file.texts(word):
                digest.update(json.dumps(text).encode())  # quoted, so that no two columns read alike
        yield digest.hexdigest()


def _digest(filesystem: Any, path: str, found: Found) -> str:
    """What tells that a file has changed: a Parquet footer, wherever it lies, else size and time stamp."""
    if not path.endswith(".parquet"):
        return found.line.hex()
    with filesystem.open(path, "rb") as handle:
        handle.seek(-8, 2)
        length = int.from_bytes(handle.read(4), "little")
        handle.seek(-8 - length, 2)
        return hashlib.sha256(handle.read(length)).hexdigest()


def _check_width(shard: _Shard, file: _Seen, seen: Sequence[tuple[_Shard, _Seen]]) -> None:
    if file.width < 1:
        raise UserError(f"{shard.found.name!r}: its features have no values.")
    if seen and seen[0][1].width != file.width:
        raise UserError(
            f"{shard.found.name!r} has features of width {file.width}, and {seen[0][0].found.name!r} of width "
            f"{seen[0][1].width}: one source holds the features of one model."
        )


def _unreadable(part: Part) -> FeatureRows:
    rows = part.rows or 0
    nothing: list[str | None] = [None] * rows
    vectors = Vectors(np.zeros((rows, part.width), np.float32), [UNREADABLE] * rows)
    return FeatureRows(vectors=vectors, words=dict.fromkeys(WORDS, nothing))


def _table(part: Part, rows: FeatureRows) -> pa.Table:
    vector_ND, errors = rows.vectors
    valid_N = np.array([error is None for error in errors], dtype=bool)
    name, split = part.uris[0], split_of_name(part.uris[0])
    shown = [path or f"{name}#{part.start + i}" for i, path in enumerate(rows.words["path"])]
    ids = [
        given or image_id(vector.tobytes() if error is None else f"{part.root}/{path}".encode("utf-8", "replace"))
        for given, vector, error, path in zip(rows.words["id"], vector_ND, errors, shown, strict=True)
    ]
    values = pa.array(vector_ND.reshape(-1))
    texts: dict[str, Iterable[str | None]] = {
        "id": ids,
        "label": rows.words["label"],
        "split": [text or split for text in rows.words["split"]],
        "path": shown,
        "error": errors,
    }
    columns = {"row": pa.array(range(part.first_row, part.first_row + len(errors)), pa.int64())} | {
        key: pa.array([None if text is None else printable(text) for text in column], pa.string())
        for key, column in texts.items()
    }
    return pa.table(columns).append_column(
        "feature", pa.FixedSizeListArray.from_arrays(values, part.width, mask=pa.array(~valid_N))
    )
