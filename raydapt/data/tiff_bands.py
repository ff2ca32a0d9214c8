"""TIFF files that Pillow does not read, or reads wrongly: many bands, floats of several bands, 16-bit planes.

Three bands are shown: the first three, and of 12 or 13 bands, which are Sentinel-2's, red, green and blue (4, 3 and 2).
They are scaled together (`raydapt.data.deep_colours.to_8_bits`); one or two bands are a grey image of the first.

Legend: H height, W width, S bands.
"""

import importlib
import io
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from raydapt.data.deep_colours import to_8_bits

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MIN_IS_BLACK, _RGB = 1, 2
_ORIENTATION, _PLANAR, _BITS, _SAMPLES = 274, 284, 258, 277
_SEPARATE = 2
_SENTINEL_2 = (12, 13)
_MOST_VALUES = 16
"""Values of a pixel, over all bands, at which the largest number of pixels that is allowed is held in full."""
NEEDS_EXTRA = "needs raydapt[tiff]"

logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # what it complains of is read here


class NoBands(Exception):  # noqa: N818 - a verdict on a row
    """A file whose bands cannot be shown, with the reason for its row."""


def is_tiff(data: bytes) -> bool:
    """Whether encoded bytes begin as a TIFF file does."""
    return data[:4] in _MAGIC


def has_deep_planes(image: Image.Image) -> bool:
    """Whether an opened image has planes of more than 8 bits, of which Pillow keeps the wrong bytes."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or tags.get(_PLANAR) != _SEPARATE:
        return False
    bits = tags.get(_BITS, (8,))
    deep = max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return bool(deep and tags.get(_SAMPLES, 1) > 1)


def read_bands(data: bytes, *, max_pixels: int) -> tuple[Image.Image, int]:
    """The first page of a TIFF file as an RGB image, and its EXIF orientation.

    Raises:
        NoBands: With the reason of the row.
    """
    try:
        tifffile: Any = importlib.import_module("tifffile")
    except ImportError:
        raise NoBands(NEEDS_EXTRA) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            pixels, bands = page.imagewidth * page.imagelength, page.samplesperpixel
            if pixels > max_pixels or pixels * bands > _MOST_VALUES * max_pixels:
                raise NoBands("too_many_pixels")
            if page.photometric not in (_MIN_IS_BLACK, _RGB) or page.axes not in ("YX", "YXS", "SYX"):
                raise NoBands("not_an_image")
            value = page.asarray(maxworkers=1)
            value_HWS = np.moveaxis(value, 0, -1) if page.axes == "SYX" else value.reshape(*value.shape[:2], -1)
            turned = page.tags.get(_ORIENTATION)
            shown = _shown_bands(bands, is_rgb=page.photometric == _RGB)
            image = _as_image(value_HWS[..., shown], float(page.nodata))
            return image, int(turned.value) if turned is not None else 1
    except NoBands:
        raise
    except Exception as error:  # parsers raise nearly anything on broken or hostile bytes
        raise NoBands("corrupt") from error


def _shown_bands(bands: int, *, is_rgb: bool) -> list[int]:
    if bands < 3:
        return [0]
    return [3, 2, 1] if bands in _SENTINEL_2 and not is_rgb else [0, 1, 2]


def _as_image(value_HWS: npt.NDArray[Any], nothing: float) -> Image.Image:
    """8-bit colours; pixels without data, as GDAL marks them, are as dark as the darkest with data."""
    if value_HWS.dtype == np.bool_:
        value_HWS = value_HWS.astype(np.uint8) * 255
    is_float = value_HWS.dtype.kind == "f"
    empty = (value_HWS == nothing) | ~np.isfinite(value_HWS)
    if nothing != 0.0 or is_float:
        value_HWS = np.where(empty, value_HWS[~empty].min() if not empty.all() else 0, value_HWS)
    pixel_HWS = to_8_bits(value_HWS, "F" if is_float else "I") if value_HWS.dtype != np.uint8 else value_HWS
    return Image.fromarray(pixel_HWS[..., 0] if pixel_HWS.shape[-1] == 1 else pixel_HWS).convert("RGB")
