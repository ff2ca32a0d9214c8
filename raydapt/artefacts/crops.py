"""Features of all images and of random crops of them: which crops, what they depend on, and how they are read.

Legend: N images, B batch, K crops of an image, D width of the feature.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from raydapt.artefacts.features import PLAIN, encoding_settings, image_settings
from raydapt.artefacts.loaded import load_once
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.models.views import square_boxes
from raydapt.settings.groups import DataSettings, StageSettings
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "crops"


@dataclass(frozen=True, kw_only=True)
class CropSpec:
    """Which crops are taken. Those of an image depend on it and their number within it alone, on no seed of a run."""

    crops: int
    least_side: float
    most_side: float


def boxes_of(ids: Sequence[str], crops: CropSpec) -> Tensor:
    """Boxes [B, K, 4] of images by their content ids; fewer crops are the first ones of more."""
    sides = (crops.least_side, crops.most_side)
    boxes = []
    for id_ in ids:
        generator = torch.Generator().manual_seed(int(id_, 16) & (2**63 - 1))
        boxes.append(square_boxes(1, crops.crops, sides, generator))
    return torch.cat(boxes)


def crops_recipe(
    source: Source,
    clip_identity: str,
    image_spec: ImageSpec,
    data: DataSettings,
    crops: CropSpec,
    *,
    stage: StageSettings = PLAIN,
) -> Recipe:
    """What the crops' features depend on."""
    settings = image_settings(image_spec, data) | encoding_settings(stage) | {"crops": asdict(crops)}
    return Recipe(kind=KIND, settings=settings, inputs=(source.identity,), weights=clip_identity)


def load_crops(artefact: Artefact) -> Tensor:
    """Features [N, 1 + K, D] in the order of `load_features`; zeros for images in error."""
    return load_once(artefact, "crops", lambda: _read(artefact))


def _read(artefact: Artefact) -> Tensor:
    places = 1 + int(artefact.manifest.settings["crops"]["crops"])
    feature_NKD, start = torch.zeros(0), 0
    for table in artefact.iter_tables(["feature"]):
        column = table["feature"].combine_chunks()
        if not start:
            feature_NKD = torch.zeros(artefact.manifest.rows, places, column.type.list_size // places)
        valid = column.is_valid().to_numpy(zero_copy_only=False).copy()
        value_M = column.flatten().to_numpy().copy()
        feature_NKD[start : start + table.num_rows][torch.from_numpy(valid)] = torch.from_numpy(value_M).view(
            -1, *feature_NKD.shape[1:]
        )
        start += table.num_rows
    return feature_NKD
