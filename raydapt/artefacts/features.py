"""Features of all images under a frozen CLIP: what they depend on, and how they are read.

Legend: N images, D width of the feature.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.settings.groups import DataSettings
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "features"


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """The features of a source's images, in the order of the source. It holds no labels (see `load_labels`).

    Attributes:
        row_N: Row number in the source, int64.
        id_N: Content ids.
        split_N: Names of the splits; None where the source has none.
        path_N: Where each image came from, for people.
        error_N: Why an image could not be used; None for the others.
        feature_ND: L2-normalised float32 features; zeros for an image in error.
        valid_N: True for images that have a feature.
    """

    row_N: Tensor
    id_N: list[str]
    split_N: list[str | None]
    path_N: list[str]
    error_N: list[str | None]
    feature_ND: Tensor
    valid_N: Tensor


def features_recipe(source: Source, clip_identity: str, image_spec: ImageSpec, data: DataSettings) -> Recipe:
    """What the features depend on; the source's identity holds the images and the way they are cut into parts."""
    settings = image_settings(image_spec, data)
    return Recipe(kind=KIND, settings=settings, inputs=(source.identity,), weights=clip_identity)


def image_settings(image_spec: ImageSpec, data: DataSettings) -> dict[str, Any]:
    """The settings that decide on the pixels of an image stage."""
    limits = {"max_image_bytes": data.max_image_bytes, "max_image_pixels": data.max_image_pixels}
    return {"image": asdict(image_spec), **limits}


def load_features(artefact: Artefact) -> FeatureTable:
    """Reads the features without the labels; the float array is filled shard by shard, never held twice."""
    rows = artefact.manifest.rows
    feature_ND, valid_N = torch.zeros(rows, 0), torch.zeros(rows, dtype=torch.bool)
    row_N = torch.zeros(rows, dtype=torch.int64)
    words: dict[str, list[Any]] = {name: [] for name in ("id", "split", "path", "error")}
    start = 0
    for table in artefact.iter_tables(["row", *words, "feature"]):
        stop = start + table.num_rows
        column = table["feature"].combine_chunks()
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        if start == 0:
            feature_ND = torch.zeros(rows, column.type.list_size)
        row_N[start:stop] = torch.from_numpy(table["row"].to_numpy().copy())
        valid_N[start:stop] = torch.from_numpy(valid.copy())
        value_MD = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        feature_ND[start:stop][valid_N[start:stop]] = torch.from_numpy(value_MD.copy())
        for name, word in words.items():
            word.extend(table[name].to_pylist())
        start = stop
    return FeatureTable(
        row_N=row_N,
        id_N=words["id"],
        split_N=words["split"],
        path_N=words["path"],
        error_N=words["error"],
        feature_ND=feature_ND,
        valid_N=valid_N,
    )


def load_labels(artefact: Artefact) -> list[str | None]:
    """The stored labels, in the order of `load_features`.

    For evaluation and the labelled part of SSL and TRZSL alone: nothing else of raydapt may call this.
    """
    return [label for table in artefact.iter_tables(["label"]) for label in table["label"].to_pylist()]
