"""Class embeddings as others computed them: one vector per class, or one per class and wording.

Legend: C classes, M rows of the file, R wordings, D width.
"""

import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.data.arrays import open_array, texts_of_array
from raydapt.data.columns import feature_column
from raydapt.data.embedding_files import FILE_ERRORS, check_as_many
from raydapt.data.files import first_line, open_filesystem
from raydapt.data.vectors import holds_vectors, unit_vectors, vectors_of_column
from raydapt.errors import UserError

MEAN = "mean of templates"
"""The wording of a row that is the mean over all wordings; also what a row without a wording stands for."""
SCALE_KEY = b"raydapt.logit_scale"
"""What the schema of a Parquet file calls the model's factor from cosine to logit."""
_NAMES = ("name", "names", "class", "class_name", "label")
_TEMPLATES = ("template", "templates", "prompt", "wording")
_FEATURES = ("feature", "features", "embedding", "embeddings")
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class ClassFeatures:
    """The class embeddings of a file.

    Attributes:
        uri: The file.
        names: Distinct names, in the order of the file.
        class_M: int64 index into `names` of each row.
        template_M: The wording of each row; `MEAN` where it is the mean, or the only one.
        feature_MD: Unit vectors.
        logit_scale: Factor from cosine to logit of the model, where the file tells it.
    """

    uri: str
    names: tuple[str, ...]
    class_M: npt.NDArray[np.int64]
    template_M: tuple[str, ...]
    feature_MD: npt.NDArray[np.float32]
    logit_scale: float | None = None

    @property
    def width(self) -> int:
        """D."""
        return int(self.feature_MD.shape[1])

    @cached_property
    def identity(self) -> str:
        """A digest of names, wordings and vectors, wherever the file lies."""
        digest = hashlib.sha256(repr((self.names, self.class_M.tolist(), self.template_M, self.logit_scale)).encode())
        digest.update(np.ascontiguousarray(self.feature_MD).tobytes())
        return digest.hexdigest()

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """What can stand for all classes: every wording that each class has, in the order of the file.

        The first is the prompt. A file without means for all classes has `MEAN` before its wordings.
        """
        common = tuple(template for template, times in Counter(self.template_M).items() if times == len(self.names))
        return common if MEAN in common else (MEAN, *common)

    def embeddings(self, names: Sequence[str], templates: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors [C, D]: the normalised mean of a class's vectors over the wordings.

        `MEAN` alone gives the file's own means, and where it has none, the mean over all wordings of the class;
        beside other wordings it is left out, since it is made of them. A place ``{}`` for the name and a full stop
        make no difference to a wording.

        Raises:
            UserError: For a class or a wording that the file does not have.
        """
        asked = {_wording(template) for template in templates}
        mean_only = asked <= {MEAN}
        wanted = asked - {MEAN}
        mean_CD = np.empty((len(names), self.width), np.float32)
        for c, index in enumerate(self._indices(names)):
            row_of = self._rows[index]
            if mean_only:
                rows = [row_of[MEAN]] if MEAN in row_of else list(row_of.values())
            else:
                if missing := wanted - row_of.keys():
                    raise UserError(
                        f"data.class_features={self.uri!r} has no vector of class {names[c]!r} under the wording "
                        f"{min(missing)!r}: set data.templates to wordings of the file, or leave it at auto."
                    )
                rows = [row_of[template] for template in row_of if template in wanted]
            mean_CD[c] = self.feature_MD[rows].mean(axis=0)
        found = unit_vectors(mean_CD)
        if any(found.errors):
            name = names[[error is not None for error in found.errors].index(True)]
            raise UserError(f"data.class_features={self.uri!r}: the vectors of class {name!r} cancel out: check them.")
        return found.vector_ND

    def all_rows(self, names: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Every vector of the classes, without the means where there are others: [M, D] and its class int64 [M]."""
        features, classes = [], []
        for c, index in enumerate(self._indices(names)):
            row_of = self._rows[index]
            rows = [row for template, row in row_of.items() if template != MEAN] or list(row_of.values())
            features.append(self.feature_MD[rows])
            classes.append(np.full(len(rows), c))
        return np.concatenate(features), np.concatenate(classes)

    def check_width(self, width: int, source: str) -> None:
        """Refuses image features of another width, with a `UserError`."""
        if width != self.width:
            raise UserError(
                f"data.class_features={self.uri!r} has vectors of width {self.width}, and data.source={source!r} of "
                f"width {width}: give class embeddings of the model that encoded the images."
            )

    @cached_property
    def _rows(self) -> list[dict[str, int]]:
        """Of each class, its rows by their wording."""
        rows: list[dict[str, int]] = [{} for _ in self.names]
        for row, (index, template) in enumerate(zip(self.class_M.tolist(), self.template_M, strict=True)):
            rows[index][_wording(template)] = row
        return rows

    @cached_property
    def _index(self) -> dict[str, int]:
        return {_spelling(name): i for i, name in enumerate(self.names)}

    def _indices(self, names: Sequence[str]) -> list[int]:
        missing = [name for name in names if _spelling(name) not in self._index]
        if missing:
            shown = ", ".join(map(repr, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
            raise UserError(
                f"data.class_features={self.uri!r} has no vector for {len(missing)} of {len(names)} classes ({shown}): "
                "add them, or take them out of data.class_names."
            )
        return [self._index[_spelling(name)] for name in names]


class _Raw(NamedTuple):
    names: list[str | None]
    templates: list[str | None]
    value: Any
    """A column of lists, or an array."""
    logit_scale: float | None = None


def read_class_features(address: str, class_names: Sequence[str] | None = None) -> ClassFeatures:
    """Reads class embeddings from any file system.

    Args:
        address: A Parquet file with the columns ``name``, ``feature`` and, if a class has several, ``template``; an
            ``.npz`` file with arrays of these names; or an ``.npy`` array [C, D] in the order of `class_names`.
        class_names: Names for an ``.npy`` array.

    Raises:
        UserError: For a file that is missing or none of these, a name or vector that cannot be used, or the same name
            and wording twice.
    """
    filesystem, path = open_filesystem(address)
    try:
        with filesystem.open(path, "rb") as handle:
            raw = _read(handle, path, class_names)
    except FileNotFoundError:
        raise UserError(f"data.class_features={address!r} does not exist: check the path.") from None
    except FILE_ERRORS as error:
        raise UserError(
            f"data.class_features={address!r} cannot be read ({first_line(error)}): give Parquet, .npz or .npy."
        ) from None
    return _checked(address, raw)


def _checked(address: str, raw: _Raw) -> ClassFeatures:
    where = f"data.class_features={address!r}"
    if not raw.names:
        raise UserError(f"{where} has no rows.")
    for row, name in enumerate(raw.names):
        if name is None or not name.strip():
            raise UserError(f"{where}: row {row} has no name.")
    if isinstance(raw.value, np.ndarray):
        found = unit_vectors(raw.value)
    else:
        lengths = [len(value) for value in raw.value if value.is_valid]
        found = vectors_of_column(raw.value, max(lengths, default=0))
    names = [str(name).strip() for name in raw.names]
    for row, error in enumerate(found.errors):
        if error is not None:
            raise UserError(f"{where}: the vector of row {row}, class {names[row]!r}, cannot be used ({error}).")
    templates = tuple(MEAN if template is None or not template.strip() else template for template in raw.templates)
    index: dict[str, int] = {}
    for name in names:
        index.setdefault(_spelling(name), len(index))
    class_M = np.array([index[_spelling(name)] for name in names], np.int64)
    twice = Counter(zip(class_M.tolist(), map(_wording, templates), strict=True)).most_common(1)[0]
    if twice[1] > 1:
        (c, template), times = twice
        name = names[class_M.tolist().index(c)]
        wording = "without a wording" if template == MEAN else f"under the wording {template!r}"
        raise UserError(f"{where} has {times} rows of class {name!r} {wording}: keep one, or tell them apart.")
    first_rows = np.unique(class_M, return_index=True)[1]
    return ClassFeatures(
        uri=address,
        names=tuple(names[row] for row in first_rows),
        class_M=class_M,
        template_M=templates,
        feature_MD=found.vector_ND,
        logit_scale=raw.logit_scale,
    )


def _read(handle: IO[bytes], path: str, class_names: Sequence[str] | None) -> _Raw:
    if path.endswith(".npy"):
        return _read_array(handle, path, class_names)
    return _read_archive(handle, path) if path.endswith(".npz") else _read_table(handle, path)


def _read_table(handle: IO[bytes], path: str) -> _Raw:
    table = pq.read_table(handle)
    name = next((known for known in _NAMES if known in table.column_names), None)
    feature = feature_column(table.schema)
    if name is None or feature is None:
        raise UserError(
            f"data.class_features={path!r} has the columns {', '.join(table.column_names)}: it needs 'name' and "
            "'feature', and 'template' if a class has several rows."
        )
    if not holds_vectors(table.schema.field(feature).type):
        raise UserError(
            f"data.class_features={path!r}: the column {feature!r} is {table.schema.field(feature).type}; it must hold "
            "lists of floats."
        )
    template = next((known for known in _TEMPLATES if known in table.column_names), None)
    nothing: list[str | None] = [None] * table.num_rows
    templates = nothing if template is None else _texts(table[template])
    return _Raw(_texts(table[name]), templates, table[feature].combine_chunks(), _noted_scale(table.schema, path))


def _noted_scale(schema: pa.Schema, path: str) -> float | None:
    noted = (schema.metadata or {}).get(SCALE_KEY)
    if noted is None:
        return None
    try:
        scale = float(noted)
    except ValueError:
        scale = 0.0
    if not (scale > 0 and np.isfinite(scale)):
        raise UserError(f"data.class_features={path!r} notes the logit scale {noted!r}, which is none: write it anew.")
    return scale


def _read_archive(handle: IO[bytes], path: str) -> _Raw:
    with zipfile.ZipFile(handle) as archive:
        there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        arrays = {}
        for key, known in (("name", _NAMES), ("template", _TEMPLATES), ("feature", _FEATURES)):
            if member := next((name for name in known if name in there), None):
                with archive.open(f"{member}.npy") as file:
                    array = open_array(file, f"{path}[{member}]")
                    arrays[key] = array.take(0, array.rows)
    if "name" not in arrays or "feature" not in arrays:
        raise UserError(
            f"data.class_features={path!r} holds the arrays {', '.join(there)}: it needs 'name' and 'feature'."
        )
    value = _matrix(arrays["feature"], path)
    for key in ("name", "template"):
        if key in arrays:
            check_as_many(f"{path}[{key}]", len(arrays[key]), f"{path}[feature]", len(value))
    nothing: list[str | None] = [None] * len(value)
    templates = texts_of_array(arrays["template"]) if "template" in arrays else nothing
    return _Raw(texts_of_array(arrays["name"]), templates, value)


def _read_array(handle: IO[bytes], path: str, class_names: Sequence[str] | None) -> _Raw:
    array = open_array(handle, path)
    value = _matrix(array.take(0, array.rows), path)
    if class_names is None:
        raise UserError(
            f"data.class_features={path!r} has no names: set data.class_names to them, in the order of its rows."
        )
    check_as_many("data.class_names", len(class_names), path, len(value))
    return _Raw(list(class_names), [None] * len(value), value)


def _matrix(value: npt.NDArray[Any], path: str) -> npt.NDArray[Any]:
    if value.ndim != 2 or value.dtype.kind != "f":
        raise UserError(
            f"data.class_features={path!r} is an array of shape {list(value.shape)} and type {value.dtype}: class "
            "embeddings are floats of shape [classes, width]."
        )
    return value


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    return [None if value is None else str(value) for value in column.to_pylist()]


def _spelling(name: str) -> str:
    """Names are the same whatever their case, and whether underscores or spaces part their words."""
    return " ".join(name.casefold().replace("_", " ").split())


def _wording(template: str) -> str:
    """A wording without the place of the name and what ends the sentence."""
    return MEAN if template == MEAN else re.sub(r"\s+", " ", template.replace("{}", " ")).strip(" .")
