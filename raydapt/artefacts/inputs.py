"""What a method takes for an image, and where it comes from.

Legend: N images, B batch, K crops of an image, D width of the feature, S image side in px.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from raydapt.artefacts.crops import KIND as CROPS
from raydapt.artefacts.crops import load_crops
from raydapt.artefacts.features import FeatureTable
from raydapt.artefacts.pixels import KIND as PIXELS
from raydapt.artefacts.pixels import PixelRows, Pixels, load_pixels
from raydapt.artefacts.rows import Features
from raydapt.store.artefact import Artefact

InputKind = Literal["features", "pixels", "crops"]
"""What a method takes for an image: the cached feature of the frozen CLIP, uint8 pixels, or the cached features of the
image and of its crops."""

Images = Pixels | Features
"""What is taken of images by their rows: pixels, features, or features with those of crops."""


def images_of(input_kind: InputKind, table: FeatureTable, artefacts: Mapping[str, Artefact], cache_gb: float) -> Images:
    """What a method reads of every row of the features, by rows: [N, D], [N, 1 + K, D] or uint8 [N, 3, S, S].

    Args:
        input_kind: What the method takes for an image.
        table: The features.
        artefacts: The others that the method reads, by kind.
        cache_gb: See `raydapt.artefacts.pixels.load_pixels`.
    """
    if input_kind == "crops":
        return load_crops(artefacts[CROPS])
    return table.feature_ND if input_kind == "features" else load_pixels(artefacts[PIXELS], cache_gb)


def take_images(feature_ND: Features, pixels: PixelRows | None, index_B: Tensor, input_kind: InputKind) -> Tensor:
    """Features [B, D], or uint8 pixels [B, 3, S, S], of int64 indices.

    Raises:
        ValueError: If pixels are to be taken and there are none.
    """
    if input_kind == "features":
        return feature_ND[index_B]
    if pixels is None:
        raise ValueError("The method reads pixels, but there are none.")
    return pixels.take(index_B)
