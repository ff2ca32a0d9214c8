"""Small generated image sets for the tests of the stages."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BAD = (b"", b"these are words", b"\x89PNG\r\n\x1a\n and then nothing")


def png(seed: int, side: int = 16) -> bytes:
    grey = np.random.default_rng(seed).integers(0, 256, (side, side + seed % 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(path: Path, rows: int, *, bad: dict[int, bytes] | None = None, rows_per_group: int = 64) -> Path:
    """A Parquet file of random images; `bad` replaces the bytes of some of them."""
    images = [(bad or {}).get(row, png(row)) for row in range(rows)]
    labels = [f"class {row % 3}" for row in range(rows)]
    splits = ["test" if row % 4 == 0 else "train" for row in range(rows)]
    pq.write_table(pa.table({"image": images, "label": labels, "split": splits}), path, row_group_size=rows_per_group)
    return path
