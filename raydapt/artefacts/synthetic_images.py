"""Synthetic images of every class: what they depend on, and how they and their features are read. Knows no diffusers.

Legend: M synthetic images, B batch, C classes, D width of the feature, S image side in px.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from raydapt.artefacts.features import load_features
from raydapt.artefacts.inputs import InputKind, take_images
from raydapt.artefacts.pixels import PixelRows, load_pixels
from raydapt.errors import UserError
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

if TYPE_CHECKING:
    from raydapt.models.diffusion import Sampling  # diffusers takes seconds to import

KIND = "synthetic"
SYNTHETIC, SYNTHETIC_FEATURES, SYNTHETIC_PIXELS = KIND, "synthetic_features", "synthetic_pixels"
"""Names of a run's artefacts: the images, their features and their pixels."""
HELD_OUT, HELD_OUT_FEATURES, HELD_OUT_PIXELS = "held_out", "held_out_features", "held_out_pixels"
"""The same of the images that nothing learns from; they lie in the same folders, after the others."""


@dataclass(frozen=True, kw_only=True)
class SyntheticTable:
    """Synthetic images sorted by class and number: the first m of every class are a slice.

    Attributes:
        row_M: int64 position of each image in the artefact read as an image source.
        id_M: Content ids.
        class_M: int64 class that each image was made of.
        index_M: int64 number of each image within its class.
        image_M: PNG bytes; None for an image that could not be made.
    """

    row_M: Tensor
    id_M: list[str]
    class_M: Tensor
    index_M: Tensor
    image_M: list[bytes | None]


@dataclass(frozen=True, kw_only=True)
class SyntheticImages:
    """Images that were made of the classes; their classes are what they were asked to show, not labels of anything."""

    feature_MD: Tensor
    """float32 CPU, L2-normalised features of the frozen CLIP."""
    class_M: Tensor
    """int64 class that each image was made of."""
    pixels: PixelRows | None = None
    """uint8 pixels; None when the method reads features."""

    def take(self, index_B: Tensor, input_kind: InputKind) -> Tensor:
        """Features [B, D], or pixels [B, 3, S, S], of int64 indices."""
        return take_images(self.feature_MD, self.pixels, index_B, input_kind)


def synthesis_recipe(
    class_names: Sequence[str], template: str, sampling: Sampling, identity: str, lora_identity: str
) -> Recipe:
    """The recipe of synthetic images (see `SynthesisJob`), known before any of them, or the LoRA, is made."""
    how = asdict(sampling)
    if sampling.precision == "auto":  # names of images stay as they were before there was another
        del how["precision"]
    settings = {"class_names": list(class_names), "template": template, "sampling": how}
    return Recipe(kind=KIND, settings=settings, inputs=(lora_identity,) if lora_identity else (), weights=identity)


def load_synthetic(artefact: Artefact, samples_per_class: int) -> SyntheticTable:
    """The first `samples_per_class` images of every class, sorted by class and number.

    Raises:
        ValueError: If the artefact holds fewer.
    """
    table = artefact.read(["id", "image", "class_index", "index"])
    class_N = torch.from_numpy(table["class_index"].to_numpy().copy())
    index_N = torch.from_numpy(table["index"].to_numpy().copy())
    have = int(index_N.max()) + 1
    if have < samples_per_class:
        raise ValueError(f"{artefact!r} holds {have} images per class, not {samples_per_class}")
    row_M = torch.argsort(class_N * have + index_N)
    row_M = row_M[index_N[row_M] < samples_per_class]
    chosen = table.select(["id", "image"]).take(pa.array(row_M.numpy()))
    return SyntheticTable(
        row_M=row_M,
        id_M=chosen["id"].to_pylist(),
        class_M=class_N[row_M],
        index_M=index_N[row_M],
        image_M=chosen["image"].to_pylist(),
    )


def synthetic_images(
    artefacts: Mapping[str, Artefact], class_names: Sequence[str], per_class: int, cache_gb: float
) -> SyntheticImages:
    """The first `per_class` images of every class with their features, ordered by class and number.

    Args:
        artefacts: Of the names above; the pixels only if the method reads them.
        class_names: All classes.
        per_class: Images of each class; the artefacts may hold more.
        cache_gb: See `raydapt.artefacts.pixels.load_pixels`.

    Raises:
        UserError: If a class has no image that can be used.
    """
    return _of_numbers(artefacts, class_names, range(per_class), cache_gb)


def _of_numbers(
    artefacts: Mapping[str, Artefact], class_names: Sequence[str], numbers: range, cache_gb: float
) -> SyntheticImages:
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
        pixels=None if pixels is None else PixelRows(load_pixels(pixels, cache_gb), row_M),
    )


def held_out_images(
    artefacts: Mapping[str, Artefact],
    class_names: Sequence[str],
    first: int,
    count: int,
    input_kind: InputKind,
    cache_gb: float,
) -> SyntheticImages:
    """`count` images of every class from number `first` on, which no method has learned from, for the scores.

    Args:
        artefacts: Of the ``held_out`` names; the pixels only if the method reads them.
        class_names: All classes.
        first: Images of each class that are left to the method.
        count: Images of each class.
        input_kind: What the method takes for an image.
        cache_gb: See `raydapt.artefacts.pixels.load_pixels`.
    """
    names = [(SYNTHETIC, HELD_OUT), (SYNTHETIC_FEATURES, HELD_OUT_FEATURES)]
    if input_kind == "pixels":
        names.append((SYNTHETIC_PIXELS, HELD_OUT_PIXELS))
    found = {name: artefacts[held_out] for name, held_out in names}
    return _of_numbers(found, class_names, range(first, first + count), cache_gb)
