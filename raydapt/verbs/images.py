"""Images that a Python program holds, written into a folder that a run can be applied to.

Legend: H height, W width, in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image

from raydapt.errors import UserError

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def write_images(images: Sequence[Any], folder: Path) -> list[str | None]:
    """Writes images under their position, ``00000000.png`` and so on.

    Args:
        images: Paths or URLs of image files, PIL images, or uint8 arrays [H, W, 3] or [H, W].
        folder: An existing folder.

    Returns:
        The path of each image as it was given; None for an image from memory.

    Raises:
        UserError: For no images, a file that cannot be read, or anything else in the list.
    """
    if not len(images):
        raise UserError("Argument images=[] holds no image: give paths, PIL images or uint8 arrays [H, W, 3].")
    given: list[str | None] = []
    for index, image in enumerate(images):
        file = folder / f"{index:08d}.png"  # a copy is decoded by its content, whatever its name was
        if isinstance(image, str | Path):
            file.write_bytes(_read(str(image)))
        else:
            picture = image if isinstance(image, Image.Image) else _picture(image, index)
            (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(file)
        given.append(str(image) if isinstance(image, str | Path) else None)
    return given


def _read(path: str) -> bytes:
    try:
        with fsspec.open(path, "rb") as file:
            return bytes(file.read())
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"Image {path!r} cannot be read ({error}): check its path.") from None


def _picture(array: Any, index: int) -> Image.Image:
    is_image = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.size > 0
    if not is_image or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(
            f"Argument images[{index}] is {found}: give a path, a PIL image or a uint8 array [H, W, 3] or [H, W]."
        )
    return Image.fromarray(array)
