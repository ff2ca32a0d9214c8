"""What an image shows before any model has seen it: its shape, contrast, sharpness, and a perceptual hash.

Legend: H height, W width.

All but the shape are taken from a grey copy of at most 64 px a side, so that they cost little.
"""

from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageFilter

_SIDE_PX = 64


@dataclass(frozen=True)
class Measures:
    """Of one image."""

    aspect: float
    """The shorter side by the longer one, 0 to 1."""
    contrast: float
    """Standard deviation of the grey levels, which go from 0 to 255."""
    sharpness: float
    """Standard deviation of what a Gaussian blur of 1 px takes away, by the contrast; 0 without contrast."""
    phash: int
    """Perceptual hash of 64 bits: the signs of the low frequencies of the cosine transform, about their median
    (imagehash's ``phash``)."""


MEASURES = tuple(field.name for field in fields(Measures))


def measured_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the grey copy."""
    share = min(1.0, _SIDE_PX / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def measure(image: Image.Image, *, width: int, height: int) -> Measures:
    """The measures of an image.

    Args:
        image: Resized for a model already, which costs less than going back to all its pixels; not cropped. A grey
            copy of `measured_size` does as well.
        width: As it was, in px.
        height: As it was, in px.
    """
    import imagehash  # imports SciPy and PyWavelets, which processes that decode for other stages do not need

    grey = image.convert("L").resize(measured_size(*image.size), Image.Resampling.BICUBIC)
    level_HW, blurred_HW = (np.asarray(each, np.float32) for each in (grey, grey.filter(ImageFilter.GaussianBlur(1))))
    contrast = float(level_HW.std())
    code_8 = np.packbits(imagehash.phash(grey).hash)
    return Measures(
        aspect=min(width, height) / max(width, height),
        contrast=contrast,
        sharpness=float((level_HW - blurred_HW).std()) / contrast if contrast > 0 else 0.0,
        phash=int.from_bytes(code_8.tobytes(), "big"),
    )
