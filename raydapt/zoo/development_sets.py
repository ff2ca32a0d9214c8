"""Image sets to choose settings on, so that no choice is made with the labels of a target.

    python -m raydapt.zoo.development_sets FOLDER

Both are pre-training images of ``RAYDAPT_DATA`` pushed away from what the miniature CLIP has seen: the photos of PACS
flattened and outlined as a cartoonist would, and RSSCN7's aerial views through haze, at a third of their resolution.
FOLDER gets a Parquet file of each (image, label, split: 60 % train) and a YAML file of class descriptions.
"""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from raydapt.data.descriptions import packaged_descriptions

_EDGE = 90
"""Strength of a gradient, of 255, from which on it is drawn as an outline."""
_HAZE_GAIN, _HAZE_OFFSET = (0.8, 0.9, 1.1), 10.0


def cartoon(image: Image.Image) -> Image.Image:
    """Flat, saturated colours with black outlines."""
    flat = ImageOps.posterize(image.filter(ImageFilter.ModeFilter(5)), 2)
    edge = flat.filter(ImageFilter.FIND_EDGES).convert("L").point(lambda value: 255 if value > _EDGE else 0)
    drawn = ImageEnhance.Color(flat).enhance(1.8)
    drawn.paste((0, 0, 0), mask=edge)
    return drawn


def haze(image: Image.Image) -> Image.Image:
    """A coarse view with half the contrast and a blue cast, 64 px."""
    coarse = image.resize((20, 20), Image.Resampling.BICUBIC).resize((64, 64), Image.Resampling.BICUBIC)
    pale = np.asarray(ImageEnhance.Contrast(coarse).enhance(0.5)).astype(float)
    return Image.fromarray((pale * np.array(_HAZE_GAIN) + _HAZE_OFFSET).clip(0, 255).astype(np.uint8))


def write_sets(data: Path, folder: Path) -> None:
    """Writes both sets and their descriptions.

    Args:
        data: The folder that holds ``pretrain``.
        folder: Where they go; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for file, source, change in (("photos", "pacs-photo", cartoon), ("aerial", "rsscn7", haze)):
        table = pq.read_table(data / "pretrain" / f"{file}.parquet")
        rows = table.filter(pc.equal(table["source"], source)).to_pylist()
        rng.shuffle(rows)
        images = [{**_changed(row, change), "split": "train" if at % 10 < 6 else "test"} for at, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(images), folder / f"{source}.parquet")
        (folder / f"{source}.yaml").write_text(yaml.safe_dump(_descriptions(source, rows)))


def _changed(row: dict[str, Any], change: Callable[[Image.Image], Image.Image]) -> dict[str, Any]:
    buffer = io.BytesIO()
    change(Image.open(io.BytesIO(row["image"])).convert("RGB")).save(buffer, "WEBP", quality=90)
    return {"image": buffer.getvalue(), "label": row["label"]}


def _descriptions(source: str, rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Those of PACS cartoon as of pictures, and the synonyms of an aerial place in two wordings."""
    if source == "pacs-photo":
        ready = packaged_descriptions("pacs_cartoon") or {}
        return {name: [text.replace("cartoon", "picture") for text in texts] for name, texts in ready.items()}
    wordings = ("an aerial photo of {}", "{} seen from above")
    return {row["label"]: [wording.format(name) for name in row["text"] for wording in wordings] for row in rows}


if __name__ == "__main__":
    if "RAYDAPT_DATA" not in os.environ or len(sys.argv) != 2:
        raise SystemExit("Set RAYDAPT_DATA to the folder of the data sets, and name the folder to write to.")
    write_sets(Path(os.environ["RAYDAPT_DATA"]), Path(sys.argv[1]))
