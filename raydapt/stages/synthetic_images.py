"""Synthetic images as a method reads them: what they were made of, and what the image stages made of them.

Legend: M synthetic images, C classes, S image side in px.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from raydapt.errors import UserError
from raydapt.methods.contract import PixelRows, SyntheticImages
from raydapt.stages.features import load_features
from raydapt.stages.pixels import load_pixels
from raydapt.workspace import Artefact

SYNTHETIC, SYNTHETIC_FEATURES, SYNTHETIC_PIXELS = "synthetic", "synthetic_features", "synthetic_pixels"
"""Names of a run's artefacts: the images, their features and their pixels."""


def synthetic_images(
    artefacts: Mapping[str, Artefact], class_names: Sequence[str], per_class: int, cache_folder: str | Path
) -> SyntheticImages:
    """The first `per_class` images of every class with their features, ordered by class and number.

    Args:
        artefacts: Of the names above; the pixels only if the method reads them.
        class_names: All classes.
        per_class: Images of each class; the artefacts may hold more.
        cache_folder: See `raydapt.stages.pixels.load_pixels`.

    Raises:
        UserError: If a class has no image that can be used.
    """
    from raydapt.stages.synthesis import load_synthetic  # diffusers takes seconds to import

    made, table = load_synthetic(artefacts[SYNTHETIC], per_class), load_features(artefacts[SYNTHETIC_FEATURES])
    # The rows of the features are those of the artefact: it was read as an image source, file by file.
    usable_M = table.valid_N[made.row_M]
    row_M, class_M = made.row_M[usable_M], made.class_M[usable_M]
    empty_C = torch.bincount(class_M, minlength=len(class_names)) == 0
    if bool(empty_C.any()):
        name = class_names[int(empty_C.nonzero()[0])]
        raise UserError(
            f"Setting synthesis.samples_per_class={per_class} left {int(empty_C.sum())} classes without a synthetic "
            f"image that can be used, such as {name!r}: raise it, or change the settings of the synthesis."
        )
    pixels = artefacts.get(SYNTHETIC_PIXELS)
    return SyntheticImages(
        feature_MD=table.feature_ND[row_M],
        class_M=class_M,
        pixels=None if pixels is None else PixelRows(load_pixels(pixels, cache_folder), row_M),
    )
