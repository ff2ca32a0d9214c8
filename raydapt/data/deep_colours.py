"""Images of more than 8 bits a channel to 8, so that no camera's or scanner's range comes out black.

Cameras and microscopes store 10, 12 or 14 bits in 16. What counts is the least of 8, 10, 12, 14 and 16 bits that holds
the brightest value of the image; all channels are scaled alike.

Legend: H height, W width, C channels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

_TOPS = (255, 1023, 4095, 16383, 65535)
_HIGH_BYTE_OF = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}
"""Pillow's raw modes of 16-bit colours keep the byte that is high in their order; the other order gives the low one."""


def to_8_bits(value: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    """Scales numbers of any width to 0..255.

    Whole numbers from 0 to 65,535 by their bits (see above), floats of 0 to 1 by 255; anything else by its own range.

    Args:
        value: [H, W] or [H, W, C].
        mode: Pillow's; ``F`` for floats.
    """
    number = np.nan_to_num(value.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(number.min()), float(number.max())
    top = 1.0 if mode == "F" else float(next((top for top in _TOPS if high <= top), 65535))
    if low < 0.0 or high > top:
        number, top = number - low, max(high - low, 1e-300)
    return np.rint(number * (255.0 / top)).astype(np.uint8)


def wide_rgb(image: ImageFile.ImageFile) -> Image.Image | None:
    """An opened image of 16 bits a channel and several channels as 8 bits; None for all others.

    Pillow keeps the high byte of such channels alone: images of 12 bits in 16 come out nearly black. The file is
    decoded twice, once for each byte, and `to_8_bits` scales what they make together. Transparency stays as it is.
    """
    raw_modes = {raw for tile in image.tile if (raw := _raw_mode(tile.args)) is not None}
    if image.mode not in ("RGB", "RGBA") or len(raw_modes) != 1:
        return None
    raw_mode = raw_modes.pop()
    ending = raw_mode[-4:]
    if ending not in _HIGH_BYTE_OF or image.fp is None:
        return None
    low = _copy(image, raw_mode[:-4] + _HIGH_BYTE_OF[ending])
    high_HWC, low_HWC = np.asarray(_copy(image, raw_mode)), np.asarray(low)
    value_HWC = high_HWC.astype(np.uint16) * 256 + low_HWC
    scaled_HWC = high_HWC.copy()
    scaled_HWC[..., :3] = to_8_bits(value_HWC[..., :3], "I")
    return Image.fromarray(scaled_HWC, image.mode if image.mode != "RGB" else None)


def _raw_mode(arguments: Any) -> str | None:
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else None


def _copy(image: ImageFile.ImageFile, raw_mode: str) -> Image.Image:
    """The same file decoded with another raw mode."""
    file = image.fp
    if file is None:
        raise ValueError("the image is closed")
    position = file.tell()
    file.seek(0)
    copy = type(image)(file)
    copy.tile = [tile._replace(args=_with_raw_mode(tile.args, raw_mode)) for tile in copy.tile]
    copy._exclusive_fp = False  # the file belongs to the image that was opened
    copy.load()
    file.seek(position)
    return copy


def _with_raw_mode(arguments: Any, raw_mode: str) -> Any:
    return (raw_mode, *arguments[1:]) if isinstance(arguments, tuple) else raw_mode
