"""What the data check finds of changed copies and blurred images, and what it takes for such among the others.

    python -m tests.bench.bench_data_check SET.parquet …

Of each set 600 images are drawn; of 150 of them a changed copy is added, of one kind at a time. Recall: changed copies
that are told as near copies (of blurred ones: as blurry, among the others). False: images as they are that are told as
such, which may hold true copies.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch.nn import functional as F

from raydapt.data.decode import decode_measured, decode_rgb
from raydapt.models.clip import Clip, load_clip
from raydapt.run.data_check import LEAST_SHARPNESS, _near_copies

IMAGES, CHANGED = 600, 150
LIMITS = {"max_pixels": 10**8, "max_bytes": 10**8}


def jpeg(image: Image.Image) -> bytes:
    """Of quality 50."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=50)
    return sink.getvalue()


def png(image: Image.Image) -> bytes:
    """Without loss."""
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def cropped(image: Image.Image) -> Image.Image:
    """Without a twentieth of every side."""
    x, y = image.width // 20, image.height // 20
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 50": jpeg,
    "half the size": lambda image: png(image.resize((image.width // 2, image.height // 2))),
    "15 % brighter": lambda image: png(ImageEnhance.Brightness(image).enhance(1.15)),
    "5 % cropped": lambda image: png(cropped(image)),
}


def blurred(image: Image.Image) -> bytes:
    """By a 25th of the longer side."""
    return png(image.filter(ImageFilter.GaussianBlur(max(image.size) / 25)))


def looked_at(clip: Clip, images: list[bytes]) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Hashes, sharpness and features."""
    pairs = [decode_measured(image, clip.image_spec, **LIMITS) for image in images]
    pixel_N3SS = torch.from_numpy(np.stack([pixels for pixels, _ in pairs]))
    with torch.no_grad():
        feature_ND = F.normalize(torch.cat([clip.encode_image(part) for part in pixel_N3SS.split(128)]).float(), dim=1)
    hash_N = np.array([measures.phash for _, measures in pairs], dtype=np.uint64)
    return hash_N, np.array([measures.sharpness for _, measures in pairs]), feature_ND


def main() -> None:
    """Prints one row per set and change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    torch.set_num_threads(1)
    clip = load_clip("mini")
    print("| set | " + " | ".join(CHANGES) + " | blurred | false: near copies | blurry |")
    print("|---|" + "---|" * (len(CHANGES) + 3))
    for path in parser.parse_args().sets:
        column = pq.read_table(path)["image"]
        row_N = np.random.default_rng(0).permutation(len(column))[:IMAGES]
        cells = [column[int(row)].as_py() for row in row_N]
        images = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
        hash_N, sharpness_N, feature_ND = looked_at(clip, images)
        opened, order_N = [decode_rgb(image, **LIMITS) for image in images[:CHANGED]], np.arange(len(images))
        recalls = []
        for change in CHANGES.values():
            other_hash_M, _, other_MD = looked_at(clip, [change(image) for image in opened])
            both, both_MD = np.concatenate([hash_N, other_hash_M]), torch.cat([feature_ND, other_MD])
            near_A, _ = _near_copies(both, both_MD, np.arange(len(both)))
            recalls.append((near_A[len(images) :] >= 0).mean())
        least = LEAST_SHARPNESS * np.median(sharpness_N)
        recalls.append((looked_at(clip, [blurred(image) for image in opened])[1] < least).mean())
        false = [(_near_copies(hash_N, feature_ND, order_N)[0] >= 0).mean(), (sharpness_N < least).mean()]
        print(f"| {path.stem} | " + " | ".join(f"{100 * share:.1f}" for share in [*recalls, *false]) + " |", flush=True)


if __name__ == "__main__":
    main()
