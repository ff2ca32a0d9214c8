"""Small images for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_png(path: Path, *, seed: int = 0, size_px: int = 12) -> Path:
    """Writes an image of random pixels, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixel_HW3 = np.random.default_rng(seed).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    Image.fromarray(pixel_HW3).save(path)
    return path
