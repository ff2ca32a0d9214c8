"""Generated images of up to 1,000 classes, by seed: a shape of one colour on a ground of another.

Which class an image has can be read from its pixels, so that a model that sees shapes and colours could name all of
them. Place, size and noise differ from image to image. A file is written piece by piece: memory does not grow with it.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Grid = npt.NDArray[np.float32]
# u to the right and v down, both 0 in the middle of a shape and within [-1, 1] where it may be.
SHAPES: dict[str, Callable[[Grid, Grid], npt.NDArray[np.bool_]]] = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 1,
    "diamond": lambda u, v: abs(u) + abs(v) < 1,
    "ring": lambda u, v: abs(u**2 + v**2 - 0.65) < 0.35,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.75) < 0.25,
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
    "cross": lambda u, v: (np.minimum(abs(u + v), abs(u - v)) < 0.45) & (np.maximum(abs(u), abs(v)) < 1),
    "beam": lambda u, v: (abs(v) < 0.35) & (abs(u) < 1),
    "pillar": lambda u, v: (abs(u) < 0.35) & (abs(v) < 1),
    "triangle": lambda u, v: (abs(u) < (v + 1) / 2) & (abs(v) < 1),
}
COLOURS = {
    "white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128), "red": (220, 0, 0), "green": (0, 150, 0),
    "blue": (0, 0, 255), "yellow": (255, 255, 0), "orange": (255, 140, 0), "purple": (130, 0, 130),
    "brown": (120, 60, 0),
}  # fmt: skip
GROUNDS = {
    "pink": (255, 150, 180), "navy": (0, 0, 110), "olive": (110, 120, 0), "teal": (0, 110, 110),
    "maroon": (110, 0, 30), "cyan": (0, 255, 255), "beige": (240, 225, 190), "violet": (190, 110, 255),
    "lime": (150, 255, 0), "slate": (80, 95, 115),
}  # fmt: skip
CLASS_NAMES = tuple(f"{colour} {shape} on {ground}" for ground in GROUNDS for colour in COLOURS for shape in SHAPES)
_NOISE, _ROWS_PER_PIECE = 12, 1000


def draw(class_: int, size_px: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One image of a class, uint8 [size, size, 3]."""
    names = CLASS_NAMES[class_].split()
    shape, colour, ground = SHAPES[names[1]], COLOURS[names[0]], GROUNDS[names[3]]
    radius, (x, y) = random.uniform(0.34, 0.4), random.uniform(-0.03, 0.03, 2)
    place_S = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px - 0.5
    inside_SS = shape((place_S[None, :] - x) / radius, (place_S[:, None] - y) / radius)
    clean_SS3 = np.where(inside_SS[..., None], colour, ground)
    noise_SS3 = random.integers(-_NOISE, _NOISE + 1, clean_SS3.shape)
    return (clean_SS3 + noise_SS3).clip(0, 255).astype(np.uint8)


def write_shapes(folder: Path, n_images: int, n_classes: int = 1000, *, size_px: int = 32, seed: int = 0) -> None:
    """Writes ``images.parquet``, a tenth of it for testing, and ``classes.txt``; classes take turns.

    Args:
        folder: Made where it is not there.
        n_images: Rows.
        n_classes: The first so many of `CLASS_NAMES`.
        size_px: Side.
        seed: Of all images; each piece of 1,000 has its own with it, whatever comes before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES[:n_classes]) + "\n")
    schema = pa.schema([("image", pa.binary()), ("label", pa.string()), ("split", pa.string())])
    with pq.ParquetWriter(folder / "images.parquet", schema) as writer:
        for start in range(0, n_images, _ROWS_PER_PIECE):
            random = np.random.default_rng([seed, start])
            rows = range(start, min(start + _ROWS_PER_PIECE, n_images))
            images = [png(draw(row % n_classes, size_px, random)) for row in rows]
            labels = [CLASS_NAMES[row % n_classes] for row in rows]
            splits = ["test" if row // n_classes % 10 == 0 else "train" for row in rows]
            writer.write_table(pa.table([images, labels, splits], schema=schema))


def png(pixel_SS3: npt.NDArray[np.uint8]) -> bytes:
    """An image as a file, packed as fast as may be."""
    file = io.BytesIO()
    Image.fromarray(pixel_SS3).save(file, "PNG", compress_level=1)
    return file.getvalue()
