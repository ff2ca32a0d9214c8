"""Features and class embeddings as files that any raydapt can adapt to: one machine encodes, another learns.

Legend: C classes, R wordings, D width.
"""

import posixpath
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydapt.data.class_features import MEAN, SCALE_KEY
from raydapt.data.classes import ClassSpace
from raydapt.data.embeddings import CLASSES_FILE
from raydapt.data.files import first_line, open_filesystem
from raydapt.errors import UserError
from raydapt.models.clip import Clip
from raydapt.store.artefact import Artefact

FEATURES_FILE = "features.parquet"
_ROWS_PER_GROUP = 8192
_COLUMNS = ("id", "label", "split", "path", "feature")
Precision = Literal["float32", "float16"]


def write_features(
    artefact: Artefact, classes: ClassSpace, clip: Clip, output: str, *, precision: Precision = "float32"
) -> tuple[str, str]:
    """Writes ``features.parquet`` and ``classes.parquet``, which ``data.source`` and ``data.class_features`` take.

    The class embeddings are of every template, in their order, so that the first stays the prompt; behind them, their
    mean; the file notes the model's logit scale. Images in error stay as rows without a feature. Memory does not grow
    with the images.

    Args:
        artefact: Finished features.
        classes: Names and templates.
        clip: The model that made the features.
        output: A folder on any file system; files of these names are replaced.
        precision: Of the vectors; float32 comes back bit for bit, float16 takes half the space.

    Returns:
        The addresses of both files.

    Raises:
        UserError: If the folder cannot be written.
    """
    filesystem, folder = open_filesystem(output)
    paths = [posixpath.join(folder, name) for name in (FEATURES_FILE, CLASSES_FILE)]
    try:
        filesystem.makedirs(folder, exist_ok=True)
        for path, tables in zip(
            paths, (_image_rows(artefact, precision), _class_rows(classes, clip, precision)), strict=True
        ):
            # A killed command leaves a file with another name, never half of one under its own.
            with filesystem.open(f"{path}.tmp", "wb") as handle:
                _write_parquet(handle, tables)
            filesystem.mv(f"{path}.tmp", path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"Option --output={output!r} cannot be written ({first_line(error)}): check the place and its free space."
        ) from None
    base = output.rstrip("/")
    return f"{base}/{FEATURES_FILE}", f"{base}/{CLASSES_FILE}"


def _image_rows(artefact: Artefact, precision: Precision) -> Iterator[pa.Table]:
    """The rows of the artefact, several shards at a time."""
    waiting: list[pa.Table] = []
    for table in artefact.iter_tables(_COLUMNS):
        waiting.append(_at(table.select(_COLUMNS), precision))
        if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _class_rows(classes: ClassSpace, clip: Clip, precision: Precision) -> Iterator[pa.Table]:
    """One table for each template, and one of the mean of all."""
    for template in classes.templates:
        if template != MEAN:
            yield _class_table(classes.names, template, clip, [template], precision)
    yield _class_table(classes.names, MEAN, clip, classes.templates, precision)


def _class_table(
    names: Sequence[str], wording: str, clip: Clip, templates: Sequence[str], precision: Precision
) -> pa.Table:
    class_CD = clip.class_embeddings(names, templates).cpu().numpy().astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(class_CD.reshape(-1)), class_CD.shape[1])
    table = _at(pa.table({"name": list(names), "template": [wording] * len(names), "feature": column}), precision)
    return table.replace_schema_metadata({SCALE_KEY: repr(float(clip.logit_scale)).encode()})


def _at(table: pa.Table, precision: Precision) -> pa.Table:
    """The same table with its vectors in another precision."""
    place, column = table.column_names.index("feature"), table["feature"].combine_chunks()
    width = column.type.list_size
    kind = pa.list_(pa.float16() if precision == "float16" else pa.float32(), width)
    return table.set_column(place, "feature", pc.cast(column, kind)).replace_schema_metadata(None)


def _write_parquet(handle: object, tables: Iterator[pa.Table]) -> None:
    writer: pq.ParquetWriter | None = None
    for table in tables:
        if writer is None:
            writer = pq.ParquetWriter(handle, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()
