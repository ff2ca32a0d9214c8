"""Encoded bytes of unknown origin to the uint8 pixels that CLIP's image tower takes, safely.

The resize and the crop are those of open_clip's ``image_transform_v2`` to the pixel. They are done with Pillow alone,
so that the processes which decode need not load torch. Colours go to RGB before the resize, so that palettes are
resampled as colours.

Legend: H height, W width, S side in px.
"""

import hashlib
import io
import threading
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The plugins are imported for their effect: Pillow would load them together with all the formats not wanted here.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    ImageOps,
    Jpeg2KImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from raydapt.data.deep_colours import to_8_bits, wide_rgb
from raydapt.data.formats import FORMATS
from raydapt.data.measures import Measures, measure
from raydapt.data.tiff_bands import NEEDS_EXTRA, NoBands, has_deep_planes, is_tiff, read_bands

BAD_IMAGE_REASONS = ("empty", "too_many_bytes", "too_many_pixels", "not_an_image", "corrupt", NEEDS_EXTRA)
JPEG_PX = "jpeg_px"
"""Column of a part whose plain JPEGs are still encoded: width times height of those, null for other rows."""
MOST_DEVICE_PX = 1 << 26
"""Width times height of what is decoded on a device at a time."""
_RGB_IDS = [82, 71, 66]
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_RESIZE_MODES = ("shortest", "squash", "longest")
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_EXIF_ORIENTATION = 0x0112
_TURN = Image.Transpose
_TURNS = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
          6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}  # fmt: skip


class BadImage(Exception):  # noqa: N818 - it is a verdict on a row, not a failure of the program
    """An image that cannot be used.

    Attributes:
        reason: One of `BAD_IMAGE_REASONS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Quiet:
    """Silences warnings while at least one thread is within; `warnings.catch_warnings` alone mixes threads up."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(None, None, None)


_QUIET = _Quiet()


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What an image tower wants to see, as in open_clip's preprocessing configuration."""

    size_px: int
    resize_mode: str = "shortest"
    """``shortest`` side to size and centre crop, ``squash`` both sides, or ``longest`` side to size on black."""
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per channel, of pixels in 0..1; used by the model, not here."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        """Refuses what `decode_image` could not do."""
        if self.size_px < 1 or self.resize_mode not in _RESIZE_MODES or self.interpolation not in _RESAMPLING:
            raise ValueError(f"Unknown preprocessing of images: {self}.")


def image_id(data: bytes) -> str:
    """The stable id of an image: 16 hexadecimal digits of the BLAKE2b of its encoded bytes."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def decode_image(data: bytes, spec: ImageSpec, *, max_pixels: int, max_bytes: int) -> npt.NDArray[np.uint8]:
    """Decodes, turns upright, converts to RGB, resizes and crops; does not normalise.

    Args:
        data: Bytes of one of `raydapt.data.formats.FORMATS`; of several frames the first counts.
        spec: The size and the way to get there.
        max_pixels: Largest width times height, checked in the header before anything is decoded, and after resizing.
        max_bytes: Largest encoded size.

    Returns:
        uint8 [3, S, S].

    Raises:
        BadImage: With one of `BAD_IMAGE_REASONS`.
    """
    image = decode_rgb(data, max_pixels=max_pixels, max_bytes=max_bytes)
    return _pixels(_resize(image, spec, max_pixels), spec)


def decode_measured(
    data: bytes, spec: ImageSpec, *, max_pixels: int, max_bytes: int
) -> tuple[npt.NDArray[np.uint8], Measures]:
    """As `decode_image`, and what the image shows before the crop."""
    image = decode_rgb(data, max_pixels=max_pixels, max_bytes=max_bytes)
    resized = _resize(image, spec, max_pixels)
    return _pixels(resized, spec), measure(resized, width=image.width, height=image.height)


def _pixels(resized: Image.Image, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(_crop(resized, spec.size_px)).transpose(2, 0, 1))


def decode_rgb(data: bytes, *, max_pixels: int, max_bytes: int) -> Image.Image:
    """Decodes, turns upright and converts to RGB, in the image's own size; see `decode_image`."""
    if not data:
        raise BadImage("empty")
    if len(data) > max_bytes:
        raise BadImage("too_many_bytes")
    try:
        return _by_pillow(data, max_pixels)
    except _OtherTiffError:
        with _QUIET:
            return _by_bands(data, max_pixels)


class _OtherTiffError(Exception):
    """A TIFF file that is not for Pillow."""


def _by_bands(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image, orientation = read_bands(data, max_pixels=max_pixels)
    except NoBands as verdict:
        raise BadImage(str(verdict)) from None
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _by_pillow(data: bytes, max_pixels: int) -> Image.Image:
    with _QUIET, _open(data) as image:  # Pillow warns of bombs, broken EXIF and more; the outcome says all that matters
        if image.width * image.height > max_pixels:
            raise BadImage("too_many_pixels")
        if has_deep_planes(image):
            raise _OtherTiffError
        try:
            deep = wide_rgb(image)
            return to_rgb(_upright(image, image if deep is None else deep))
        except Exception as error:  # parsers raise nearly anything on broken or hostile bytes
            raise BadImage("corrupt") from error


def plain_jpeg_px(data: bytes, spec: ImageSpec, *, max_pixels: int, max_bytes: int) -> int | None:
    """Width times height of a JPEG that any decoder reads as Pillow does, by its header; None for all else.

    It is whole, upright, no larger than the limits and `MOST_DEVICE_PX`, and its colours are grey or YCbCr.
    """
    # Pillow refuses a file that ends early, and other decoders may fill it up.
    if len(data) > max_bytes or not (data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9")):
        return None
    try:
        with _QUIET, Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            plain = image.format == "JPEG" and image.mode in ("L", "RGB")  # of several frames Pillow makes an MPO
            ids = [layer[0] for layer in image.layer]  # type: ignore[attr-defined]
            plain &= image.info.get("adobe_transform", 1) == 1 and ids != _RGB_IDS
            plain &= image.getexif().get(_EXIF_ORIENTATION, 1) not in range(2, 9)
            width, height = resized_size(image.width, image.height, spec)
            plain &= width * height <= max(max_pixels, spec.size_px**2)
            px = image.width * image.height
    except Exception:  # what is wrong with it is for `decode_image` to say
        return None
    return px if plain and px <= min(max_pixels, MOST_DEVICE_PX) else None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency over white, wide numbers scaled (`to_8_bits`) instead of clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(to_8_bits(np.asarray(image), image.mode)).convert("RGB")
    return image.convert("RGB")


def _open(data: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage("too_many_pixels") from None
    except UnidentifiedImageError:
        if is_tiff(data):
            raise _OtherTiffError from None
        raise BadImage("not_an_image") from None
    except Exception as error:  # as above: the format is known but its header is broken
        raise BadImage("corrupt") from error


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """The pixels, which may have been decoded apart, turned as the image says."""
    pixels.load()
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken note about the image does not spoil the image
        return pixels
    if orientation not in range(2, 9):
        return pixels
    if pixels is image:
        return ImageOps.exif_transpose(image)
    return pixels.transpose(_TURNS[orientation])


def _resize(image: Image.Image, spec: ImageSpec, max_pixels: int) -> Image.Image:
    side = spec.size_px
    width, height = resized_size(image.width, image.height, spec)
    if width * height > max(max_pixels, side * side):  # a long thin image would grow beyond all bounds
        raise BadImage("too_many_pixels")
    if (width, height) == image.size:
        return image
    return image.resize((width, height), _RESAMPLING[spec.interpolation])


def _crop(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if width < side or height < side:
        padded = Image.new("RGB", (max(width, side), max(height, side)))
        padded.paste(image, (max(side - width, 0) // 2, max(side - height, 0) // 2))
        image = padded
    left, top = round((image.width - side) / 2.0), round((image.height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))


def resized_size(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """Width and height after resizing, rounded as torchvision (shortest) and timm (longest) do."""
    side = spec.size_px
    if spec.resize_mode == "squash":
        return side, side
    if spec.resize_mode == "longest":
        ratio = max(width, height) / side
        return max(round(width / ratio), 1), max(round(height / ratio), 1)
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side
