"""Synthetic images as a method reads them: what they were made of, and what the image stages made of them.

Legend: M synthetic images, C classes, S image side in px.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from raydapt.errors import UserError
from raydapt.methods.contract import PixelRows, Reads, SyntheticImages
from raydapt.settings.config import Config
from raydapt.stages.features import load_features
from raydapt.stages.pixels import load_pixels
from raydapt.store.artefact import Artefact

SYNTHETIC, SYNTHETIC_FEATURES, SYNTHETIC_PIXELS = "synthetic", "synthetic_features", "synthetic_pixels"
"""Names of a run's artefacts: the images, their features and their pixels."""
HELD_OUT, HELD_OUT_FEATURES, HELD_OUT_PIXELS = "held_out", "held_out_features", "held_out_pixels"
"""The same of the images that nothing learns from; they lie in the same folders, after the others."""


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
    return _of_numbers(artefacts, class_names, range(per_class), cache_folder)


def _of_numbers(
    artefacts: Mapping[str, Artefact], class_names: Sequence[str], numbers: range, cache_folder: str | Path
) -> SyntheticImages:
    from raydapt.stages.synthesis import load_synthetic  # diffusers takes seconds to import

    made, table = load_synthetic(artefacts[SYNTHETIC], numbers.stop), load_features(artefacts[SYNTHETIC_FEATURES])
    # The rows of the features are those of the artefact: it was read as an image source, file by file.
    usable_M = table.valid_N[made.row_M] & (made.index_M >= numbers.start)
    row_M, class_M = made.row_M[usable_M], made.class_M[usable_M]
    empty_C = torch.bincount(class_M, minlength=len(class_names)) == 0
    if bool(empty_C.any()):
        name = class_names[int(empty_C.nonzero()[0])]
        raise UserError(
            f"Setting synthesis.samples_per_class={numbers.stop} left {int(empty_C.sum())} classes without a synthetic "
            f"image that can be used, such as {name!r}: raise it, or change the settings of the synthesis."
        )
    pixels = artefacts.get(SYNTHETIC_PIXELS)
    return SyntheticImages(
        feature_MD=table.feature_ND[row_M],
        class_M=class_M,
        pixels=None if pixels is None else PixelRows(load_pixels(pixels, cache_folder), row_M),
    )


def first_held_out(config: Config) -> int:
    """The number of the first image of a class that is not left to the method; 0 where it learns from none."""
    return config.synthesis.samples_per_class if config.method == "air" else 0


def held_out_images(
    artefacts: Mapping[str, Artefact],
    class_names: Sequence[str],
    first: int,
    count: int,
    reads: Reads,
    cache_folder: str | Path,
) -> SyntheticImages:
    """`count` images of every class from number `first` on, which no method has learned from, for the scores.

    Args:
        artefacts: Of the ``held_out`` names; the pixels only if the method reads them.
        class_names: All classes.
        first: Images of each class that are left to the method.
        count: Images of each class.
        reads: What the method takes for an image.
        cache_folder: See `raydapt.stages.pixels.load_pixels`.
    """
    names = [(SYNTHETIC, HELD_OUT), (SYNTHETIC_FEATURES, HELD_OUT_FEATURES)]
    if reads == "pixels":
        names.append((SYNTHETIC_PIXELS, HELD_OUT_PIXELS))
    found = {name: artefacts[held_out] for name, held_out in names}
    return _of_numbers(found, class_names, range(first, first + count), cache_folder)
