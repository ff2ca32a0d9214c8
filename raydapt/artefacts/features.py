"""Features of all images under a frozen CLIP: what they depend on, and how they are read.

Legend: N images, D width of the feature.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raydapt.artefacts.loaded import loaded, remember
from raydapt.artefacts.rows import Features, held, room_for
from raydapt.artefacts.words import Words, shared
from raydapt.data.decode import ImageSpec
from raydapt.data.files import TRAIN_NAMES
from raydapt.data.measures import MEASURES
from raydapt.data.sources import Source, read_row_labels
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings, StageSettings
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "features"
PLAIN = StageSettings()
"""A stage that makes the features which every device makes alike."""


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """The features of a source's images, in the order of the source. It holds no labels (see `load_labels`).

    Attributes:
        row_N: Row number in the source, int64.
        id_N: Content ids.
        split_N: Names of the splits; None where the source has none.
        path_N: Where each image came from, for people.
        error_N: Why an image could not be used; None for the others.
        feature_ND: L2-normalised features, read as float32; zeros for an image in error. More than
            `raydapt.artefacts.rows.MOST_EXACT_BYTES` are held in float16.
        valid_N: True for images that have a feature.
    """

    row_N: Tensor
    id_N: Sequence[str]
    split_N: list[str | None]
    path_N: Sequence[str]
    error_N: list[str | None]
    feature_ND: Features
    valid_N: Tensor


def features_recipe(
    source: Source, clip_identity: str, image_spec: ImageSpec, data: DataSettings, *, stage: StageSettings = PLAIN
) -> Recipe:
    """What the features depend on; the source's identity holds the images and the way they are cut into parts.

    A source of features depends on nothing else: no model has a part in them.
    """
    if source.width:
        return Recipe(kind=KIND, settings={"given": True, "width": source.width}, inputs=(source.identity,))
    settings = image_settings(image_spec, data) | encoding_settings(stage)
    return Recipe(kind=KIND, settings=settings, inputs=(source.identity,), weights=clip_identity)


def encoding_settings(stage: StageSettings) -> dict[str, str]:
    """The settings of an encoding stage that make other features than fp32 does of images that Pillow has decoded."""
    arithmetic = {} if stage.arithmetic == "fp32" else {"arithmetic": stage.arithmetic}
    return arithmetic | ({"decode": "device"} if stage.decodes_on_device else {})


def image_settings(image_spec: ImageSpec, data: DataSettings) -> dict[str, Any]:
    """The settings that decide on the pixels of an image stage."""
    limits = {"max_image_bytes": data.max_image_bytes, "max_image_pixels": data.max_image_pixels}
    return {"image": asdict(image_spec), **limits}


def load_features(artefact: Artefact, source: Source | None = None) -> FeatureTable:
    """Reads the features without the labels; the float array is filled shard by shard, never held twice.

    What another part of this process still holds is shared with it (see `raydapt.artefacts.loaded`).

    Args:
        artefact: Finished features.
        source: Their images: splits that were corrected since the features were made then count as they are now.
    """
    row_N = torch.zeros(artefact.manifest.rows, dtype=torch.int64)
    words: dict[str, list[Any]] = {"split": [], "error": []}
    columns: dict[str, list[pa.Array]] = {"id": [], "path": []}
    start = 0
    feature_ND, valid_N = load_vectors(artefact)
    for table in artefact.iter_tables(["row", *words, *columns]):
        row_N[start : start + table.num_rows] = torch.from_numpy(table["row"].to_numpy().copy())
        for name, word in words.items():
            word.extend(shared(table[name].to_pylist()))
        for name, chunks in columns.items():
            chunks.extend(table[name].chunks)
        start += table.num_rows
    fresh = read_row_labels(source) if source is not None else None
    return FeatureTable(
        row_N=row_N,
        id_N=Words(pa.chunked_array(columns["id"], pa.string())),
        split_N=shared(words["split"]) if fresh is None else [fresh.splits[row] for row in row_N.tolist()],
        path_N=Words(pa.chunked_array(columns["path"], pa.string())),
        error_N=words["error"],
        feature_ND=feature_ND,
        valid_N=valid_N,
    )


def load_vectors(artefact: Artefact) -> tuple[Features, Tensor]:
    """The features of `load_features` alone, and which images have one: bool [N]."""
    rows = artefact.manifest.rows
    held_ND, valid_N = loaded(artefact, "feature"), loaded(artefact, "valid")
    if held_ND is not None and valid_N is not None:
        return held(held_ND), valid_N
    feature_ND, valid_N = torch.zeros(rows, 0), torch.zeros(rows, dtype=torch.bool)
    start = 0
    for table in artefact.iter_tables(["feature"]):
        column, stop = table["feature"].combine_chunks(), start + table.num_rows
        if start == 0:
            feature_ND = room_for(rows, column.type.list_size)
        valid_N[start:stop] = torch.from_numpy(column.is_valid().to_numpy(zero_copy_only=False).copy())
        value_MD = torch.from_numpy(column.flatten().to_numpy().reshape(-1, column.type.list_size).copy())
        feature_ND[start:stop][valid_N[start:stop]] = value_MD.to(feature_ND.dtype)
        start = stop
    return held(remember(artefact, "feature", feature_ND)), remember(artefact, "valid", valid_N)


def load_measures(artefact: Artefact) -> dict[str, np.ndarray[Any, Any]] | None:
    """What each image shows by the names `MEASURES`, [N]: NaN, of the hash 0, where an image could not be read.

    None where an earlier release made the features, or vectors were given.
    """
    columns: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in MEASURES}
    for table in artefact.iter_tables([], optional=MEASURES):
        if table.num_columns < len(MEASURES):
            return None
        for name, parts in columns.items():
            parts.append(pc.fill_null(table[name], 0 if name == "phash" else float("nan")).to_numpy())
    return {name: np.concatenate(parts) for name, parts in columns.items()} if columns["phash"] else None


def load_labels(artefact: Artefact, source: Source | None = None) -> list[str | None]:
    """The labels, in the order of `load_features`: as they are now, where the source can tell, else as stored.

    For evaluation and the labelled part of SSL and TRZSL alone: nothing else of raydapt may call this.

    Args:
        artefact: Finished features.
        source: Their images; a table may have been corrected in place since the features were made.
    """
    fresh = read_row_labels(source) if source is not None else None
    if fresh is None:
        return shared(label for table in artefact.iter_tables(["label"]) for label in table["label"].to_pylist())
    return [fresh.labels[row] for table in artefact.iter_tables(["row"]) for row in table["row"].to_pylist()]


def rows_of_splits(data: DataSettings, table: FeatureTable) -> tuple[Tensor, Tensor, bool]:
    """Which rows of the features are adapted to, and which are evaluated on.

    Returns:
        int64 training rows, int64 test rows, and whether they are the same images (transductive): so it is where the
        source has no splits at all, or none of the test splits.

    Raises:
        UserError: If there is no image to adapt to, or if no image of the test splits can be read.
    """
    found = sorted({split for split in table.split_N if split is not None})
    if not found:
        row_N = table.valid_N.nonzero().flatten()
        return _some(row_N, data, table), row_N, True
    row_N = _rows(table, lambda split: split in data.train_splits)
    row_T = _rows(table, lambda split: split in data.test_splits)
    _some(row_N, data, table)
    require_readable_tests(data, table)
    return (row_N, row_T, False) if len(row_T) else (row_N, row_N, True)


def require_readable_tests(data: DataSettings, table: FeatureTable) -> None:
    """Refuses to measure other images than the test images where there are some and none can be read.

    Raises:
        UserError: See above.
    """
    tests = [i for i, split in enumerate(table.split_N) if split is not None and split in data.test_splits]
    if tests and not bool(table.valid_N[tests].any()):
        raise UserError(
            f"Setting data.test_splits={data.test_splits}: none of the {len(tests):,} test images can be read (such as "
            f"{table.path_N[tests[0]]!r}: {table.error_N[tests[0]]}): mend them, or set data.test_splits to another "
            "split."
        )


def _rows(table: FeatureTable, wanted: Callable[[str | None], bool]) -> Tensor:
    chosen_N = torch.tensor([wanted(split) for split in table.split_N], dtype=torch.bool)
    return (chosen_N & table.valid_N).nonzero().flatten()


def _some(row_N: Tensor, data: DataSettings, table: FeatureTable) -> Tensor:
    if not len(row_N):
        found = sorted({split for split in table.split_N if split is not None})
        there = "no image of the source can be read"
        if set(found) & set(data.train_splits):
            there = f"none of their images can be read ({Counter(filter(None, table.error_N)).most_common(1)[0][0]})"
        elif found:
            likely = next((split for split in found if split in TRAIN_NAMES), found[0])
            there = f"the source has the splits {', '.join(found)}: set data.train_splits=[{likely}]"
        raise UserError(f"Setting data.train_splits={data.train_splits} leaves no image to adapt to: {there}.")
    return row_N
