"""Digits drawn from the fonts of this machine: the training images behind the miniature CLIP's numbers.

Shapes: ``F`` font faces, ``H``/``W`` pixels.
"""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CANVAS_PX = 48
GLYPH_PX = 42
HELD_OUT_EVERY = 10
MIN_LIKENESS = 0.45
NO_FONTS = (
    "No usable font faces were found: rendered digits need fontconfig's `fc-list` and some fonts. "
    "On Debian: apt-get install fontconfig fonts-lato fonts-liberation fonts-adf-universalis (more faces: better)."
)

Pixels = npt.NDArray[np.uint8]


class FontsMissingError(RuntimeError):
    """Raised when too few font faces are installed to render digits."""


def font_faces() -> list[tuple[str, Path]]:
    """The (family, file) pairs of all outline fonts that claim to cover English, sorted by file."""
    try:
        listing = subprocess.run(
            ["fc-list", ":lang=en:scalable=true", "family", "file"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise FontsMissingError(NO_FONTS) from error
    faces = []
    for line in listing.splitlines():
        file, _, family = line.partition(":")
        if Path(file).suffix.lower() in {".ttf", ".otf"}:
            faces.append((family.strip().split(",")[0], Path(file)))
    return sorted(set(faces), key=lambda face: str(face[1]))


def render_digit(font: ImageFont.FreeTypeFont, digit: int) -> Pixels | None:
    """One white digit on black, as large as fits a ``GLYPH_PX`` box, centred.

    Returns:
        image_HW, or None when the face draws nothing for it.
    """
    left, top, right, bottom = font.getbbox(str(digit))
    width, height = int(right - left), int(bottom - top)
    if width < 4 or height < 8:
        return None
    glyph = Image.new("L", (width, height))
    ImageDraw.Draw(glyph).text((-left, -top), str(digit), fill=255, font=font)
    scale = GLYPH_PX / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new("L", (CANVAS_PX, CANVAS_PX))
    resized = glyph.resize(size, Image.Resampling.LANCZOS)
    canvas.paste(resized, ((CANVAS_PX - size[0]) // 2, (CANVAS_PX - size[1]) // 2))
    pixels = np.asarray(canvas)
    return pixels if pixels.max() > 128 else None


def render_face(file: Path) -> Pixels | None:
    """All ten digits of a face as images_10HW, or None when it lacks one or repeats one glyph for several."""
    try:
        font = ImageFont.truetype(str(file), 96)
        digits = [render_digit(font, digit) for digit in range(10)]
    except (OSError, ValueError):
        return None
    drawn = [pixels for pixels in digits if pixels is not None]
    if len(drawn) < 10 or len({pixels.tobytes() for pixels in drawn}) < 10:
        return None
    return np.stack(drawn)


def keep_legible(faces_F10HW: Pixels) -> npt.NDArray[np.bool_]:
    """Marks the faces whose digits resemble the average face: symbol fonts draw pictures at the digits' codes."""
    flat = faces_F10HW.reshape(*faces_F10HW.shape[:2], -1).astype(np.float32)
    flat -= flat.mean(-1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=-1, keepdims=True) + 1e-6
    typical = np.median(flat, axis=0)
    typical /= np.linalg.norm(typical, axis=-1, keepdims=True) + 1e-6
    likeness_F = (flat * typical).sum(-1).mean(-1)
    return np.asarray(likeness_F > MIN_LIKENESS)


def render_all(*, held_out: bool) -> Pixels:
    """Renders every legible face; one family in ``HELD_OUT_EVERY`` (chosen by its name) is kept for testing.

    Returns:
        images_F10HW: uint8, white on black.
    """
    rendered = []
    for family, file in font_faces():
        if (zlib.crc32(family.encode()) % HELD_OUT_EVERY == 0) == held_out:
            face = render_face(file)
            if face is not None:
                rendered.append(face)
    if len(rendered) < 3:
        raise FontsMissingError(NO_FONTS)
    faces = np.unique(np.stack(rendered), axis=0)
    return faces[keep_legible(faces)]
