"""Which columns of a table hold the image, the label and the split, and what is in their cells."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raydapt.data.row_columns import LABEL_NAMES, SPLIT_COLUMNS, column_key
from raydapt.data.vectors import holds_vectors
from raydapt.errors import UserError

_IMAGE_NAMES = ("image", "img", "picture", "jpg", "png", "webp")
_FEATURE_NAMES = ("feature", "features", "embedding", "embeddings", "vector")
_LABEL_NAMES = ("label", "labels", "fine_label", *LABEL_NAMES)
_NO_LABEL_NAMES = ("id", "key", "index", "caption", "text", "url", "width", "height", "sha256", "filename", "md5")
"""Columns beside the images that nobody takes for labels."""
_PATH_NAMES = ("path", "address", "image_path", "filepath", "file_name", "url")


class NoImageColumnError(UserError):
    """A table that holds no images."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table that are read."""

    image: str
    """Of the images, or of their features; empty for a table that only tells about images."""
    label: str | None
    split: str | None
    label_names: tuple[str, ...]
    """Class names of an integer label column, as Hugging Face's ``ClassLabel`` keeps them in the schema; else ()."""

    ignored_label: str = ""
    """A column called as labels are that holds none, with its type; else empty."""
    other: tuple[str, ...] = ()
    """Where there is no label: columns of which one may be it under another name."""
    names_files: bool = False
    """Whether the image column holds paths alone."""
    id: str | None = None
    """Of features alone, like `path`: an image's id is made from its bytes."""
    path: str | None = None

    @property
    def wanted(self) -> list[str]:
        """All that are read."""
        return [name for name in (self.image, self.label, self.split, self.id, self.path) if name]

    def labels(self, batch: pa.RecordBatch) -> list[str | None]:
        """The labels as text; a number becomes the class name that the schema has for it."""
        return [None] * batch.num_rows if self.label is None else self._texts(batch.column(self.label))

    def splits(self, batch: pa.RecordBatch, otherwise: str | None) -> list[str | None]:
        """The splits as text, or the one that the file's name told."""
        if self.split is None:
            return [otherwise] * batch.num_rows
        return _plain_texts(batch.column(self.split))

    def ids(self, batch: pa.RecordBatch) -> list[str | None]:
        """The ids as text."""
        return [None] * batch.num_rows if self.id is None else _plain_texts(batch.column(self.id))

    def paths(self, batch: pa.RecordBatch) -> list[str | None]:
        """Where each image lies or lay."""
        return [None] * batch.num_rows if self.path is None else _plain_texts(batch.column(self.path))

    def _texts(self, column: pa.Array) -> list[str | None]:
        unique = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        texts = [self._text(value) for value in unique.dictionary.to_pylist()]
        return [None if index is None else texts[index] for index in unique.indices.to_pylist()]

    def _text(self, value: Any) -> str | None:
        """A label as text; whole numbers of any type are integers: a gap makes floats of a column of integers."""
        if value is None or isinstance(value, bool | str):
            return (str(value) if str(value).strip() else None) if value is not None else None
        if not math.isfinite(value) or value < 0:  # a gap, and what stands for "no label"
            return None
        if value != int(value):
            return str(value)
        return self.label_names[int(value)] if value < len(self.label_names) else str(int(value))


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """Finds the columns of a table by name, and by the features that ``datasets`` writes into the schema.

    Raises:
        UserError: If there is no image column, or its type cannot hold images.
    """
    image = image_column(schema)
    if image is None:
        columns = ", ".join(schema.names)
        raise NoImageColumnError(
            f"{where!r} has the columns {columns}: one of them must be called 'image' or 'feature'."
        )
    if not _holds_images(schema.field(image).type):
        raise UserError(
            f"{where!r}: the column {image!r} is {schema.field(image).type}; it must hold encoded bytes, a path, or a "
            "struct of both."
        )
    return _with_labels(schema, image)


def image_column(schema: pa.Schema) -> str | None:
    """The column that holds images; None in a table of something else."""
    return _first(schema, _IMAGE_NAMES) or _of_feature(schema, _features(schema), "Image")


def feature_column(schema: pa.Schema) -> str | None:
    """The column that is named as features are."""
    return _first(schema, _FEATURE_NAMES)


def find_feature_columns(schema: pa.Schema, where: str, *, beside: bool = False) -> Columns:
    """Finds the columns of a table of features, or of one that lies `beside` the features and tells of their images.

    Raises:
        UserError: If there is no column of features, or its type cannot hold them.
    """
    feature = "" if beside else feature_column(schema)
    if feature is None:
        raise UserError(f"{where!r} has the columns {', '.join(schema.names)}: one of them must be called 'feature'.")
    if feature and not holds_vectors(schema.field(feature).type):
        raise UserError(
            f"{where!r}: the column {feature!r} is {schema.field(feature).type}; it must hold lists of floats."
        )
    columns = _with_labels(schema, feature)
    return replace(columns, id="id" if "id" in schema.names else None, path=_first(schema, _PATH_NAMES))


def _with_labels(schema: pa.Schema, content: str) -> Columns:
    features = _features(schema)
    label = _first(schema, _LABEL_NAMES) or _of_feature(schema, features, "ClassLabel")
    ignored = ""
    if label is not None and not _holds_labels(schema.field(label).type):
        label, ignored = None, f"{label!r} ({schema.field(label).type})"
    split = _first(schema, SPLIT_COLUMNS)
    if split is not None and split != "split" and not _is_text(schema.field(split).type):
        split = None  # a number called "set" is none
    feature = features.get(label) if label else None
    names = feature.get("names") if isinstance(feature, dict) else None
    return Columns(
        image=content,
        label=label,
        ignored_label=ignored,
        names_files=bool(content) and _is_text(schema.field(content).type),
        split=split,
        other=() if label or ignored else _others(schema, (content, split)),
        label_names=tuple(str(name) for name in names) if isinstance(names, list) else (),
    )


def image_cells(column: pa.Array) -> tuple[list[bytes | None], list[str | None]]:
    """The encoded bytes and the paths of an image column, of which a cell may have either or both."""
    if pa.types.is_struct(column.type):
        names = [field.name for field in column.type]
        data = column.field("bytes").to_pylist() if "bytes" in names else [None] * len(column)
        paths = column.field("path").to_pylist() if "path" in names else [None] * len(column)
        return data, paths
    values: Sequence[Any] = column.to_pylist()
    if _is_text(column.type):
        return [None] * len(values), list(values)
    return list(values), [None] * len(values)


def _plain_texts(column: pa.Array) -> list[str | None]:
    return [None if value is None else str(value) for value in column.to_pylist()]


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _first(schema: pa.Schema, names: Sequence[str]) -> str | None:
    """The first of the names that the table has, written so or in other letters, such as "Class Name"."""
    written = {column_key(name): name for name in reversed(schema.names)}
    return next((name for name in names if name in schema.names), None) or next(
        (written[name] for name in names if name in written), None
    )


def _others(schema: pa.Schema, read: Sequence[str | None]) -> tuple[str, ...]:
    """Columns that could be labels by their type."""
    known = {*read, *_NO_LABEL_NAMES, *_PATH_NAMES}
    return tuple(
        field.name for field in schema if not {field.name, field.name.lower()} & known and _holds_labels(field.type)
    )


def _of_feature(schema: pa.Schema, features: dict[str, Any], kind: str) -> str | None:
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    return next((name for name in schema.names if kinds.get(name) == kind), None)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name in ("bytes", "path") for i in range(kind.num_fields))
    return _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(_is_text(kind) or numbers or pa.types.is_boolean(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
