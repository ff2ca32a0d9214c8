"""Image sets to choose settings on, so that no choice is made with the labels of a target.

    python -m pretraining.development_sets FOLDER

All are pushed away from what the miniature CLIP has seen: of the pre-training images of ``RAYDAPT_DATA`` the photos of
PACS flattened and outlined as a cartoonist would, RSSCN7's aerial views through haze, at a third of their resolution,
and places of RESISC45 with their colours exchanged; and digits of held-out fonts, turned, coarse and noisy.
FOLDER gets a Parquet file of each (image, label, split: 60 % train) and a YAML file of class descriptions.
FOLDER/further gets nine more of the kinds, with other changes and other classes, where four are too few to choose by.
"""

import io
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pretraining.rendered_digits import Pixels, render_all
from raydapt.data.descriptions import packaged_descriptions

_EDGE = 90
"""Strength of a gradient, of 255, from which on it is drawn as an outline."""
_HAZE_GAIN, _HAZE_OFFSET = (0.8, 0.9, 1.1), 10.0
_PER_PLACE = 200
_PER_DIGIT = 180
_MOST_TURNED_DEGREES = 40
_NOISE = 60.0
"""Standard deviation of a digit's noise, of 255."""
_FAINT_GAIN, _FAINT_OFFSET, _FAINT_NOISE = 0.45, 90.0, 35.0


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


def false_colours(image: Image.Image) -> Image.Image:
    """Red, green and blue exchanged for one another, and half the resolution."""
    red, green, blue = image.resize((32, 32), Image.Resampling.BICUBIC).split()
    return Image.merge("RGB", (blue, red, green))


def scrawl(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A digit turned by up to 40 degrees, 12 px coarse, with noise, 32 px."""
    turned = image.rotate(rng.uniform(-_MOST_TURNED_DEGREES, _MOST_TURNED_DEGREES), Image.Resampling.BICUBIC)
    coarse = turned.resize((12, 12), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(float) + rng.normal(0, _NOISE, (32, 32, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def grey(image: Image.Image) -> Image.Image:
    """Without colours, at half the resolution, 48 px."""
    coarse = image.resize((24, 24), Image.Resampling.BICUBIC).resize((48, 48), Image.Resampling.BICUBIC)
    return coarse.convert("L").convert("RGB")


def faint(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A digit turned by up to 30 degrees, 9 px coarse, of low contrast on a grey ground, with noise, 32 px."""
    turned = image.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC)
    coarse = turned.resize((9, 9), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BICUBIC)
    pale = np.asarray(coarse).astype(float) * _FAINT_GAIN + _FAINT_OFFSET + rng.normal(0, _FAINT_NOISE, (32, 32, 1))
    return Image.fromarray(pale.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Further:
    """A further set: some classes of a source, so many images of each, changed."""

    name: str
    file: str
    source: str
    change: Callable[[Image.Image], Image.Image]
    classes: int
    per_class: int


FURTHER = (
    Further(name="caltech24-cartoon", file="photos", source="caltech101", change=cartoon, classes=24, per_class=100),
    Further(name="caltech40-grey", file="photos", source="caltech101", change=grey, classes=40, per_class=60),
    Further(name="tiny12-cartoon", file="photos", source="tiny-imagenet", change=cartoon, classes=12, per_class=150),
    Further(name="tiny20-haze", file="photos", source="tiny-imagenet", change=haze, classes=20, per_class=100),
    Further(name="cifar20-grey", file="photos", source="cifar100", change=grey, classes=20, per_class=60),
    Further(name="pacs-haze", file="photos", source="pacs-photo", change=haze, classes=7, per_class=250),
    Further(name="rsscn7-colours", file="aerial", source="rsscn7", change=false_colours, classes=7, per_class=200),
    Further(name="resisc12-haze", file="aerial", source="resisc12", change=haze, classes=12, per_class=150),
)


def write_sets(data: Path, folder: Path) -> None:
    """Writes the sets and their descriptions.

    Args:
        data: The folder that holds ``pretrain``.
        folder: Where they go; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for file, source, change in (
        ("photos", "pacs-photo", cartoon),
        ("aerial", "rsscn7", haze),
        ("aerial", "resisc12", false_colours),
    ):
        rows = _mixed_rows(data, file, source, rng)
        if source == "resisc12":
            rows = _first_of_each(rows, _PER_PLACE)
        _write(folder, source, _changed(rows, change), _descriptions(source, rows))
    _write(folder, "scrawls", _scrawls(render_all(held_out=True)), dict(packaged_descriptions("digits") or {}))


def _mixed_rows(data: Path, file: str, source: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """All images of a source of the pre-training data, in random order."""
    table = pq.read_table(data / "pretrain" / f"{file}.parquet")
    rows: list[dict[str, Any]] = table.filter(pc.equal(table["source"], source)).to_pylist()
    rng.shuffle(rows)
    return rows


def _changed(rows: list[dict[str, Any]], change: Callable[[Image.Image], Image.Image]) -> list[tuple[Image.Image, str]]:
    """Every image changed, with its label."""
    return [(change(Image.open(io.BytesIO(row["image"])).convert("RGB")), row["label"]) for row in rows]


def _write(folder: Path, name: str, images: list[tuple[Image.Image, str]], described: dict[str, list[str]]) -> None:
    """A set of (image, label) and its descriptions."""
    rows = [
        {"image": _encoded(image), "label": label, "split": "train" if at % 10 < 6 else "test"}
        for at, (image, label) in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(described))


def _first_of_each(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["label"]] += 1
        if seen[row["label"]] <= count:
            kept.append(row)
    return kept


def write_further(data: Path, folder: Path) -> None:
    """Writes those of `FURTHER`, and faint digits; arguments as of `write_sets`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, wanted in enumerate(FURTHER):
        rng = np.random.default_rng(number)
        rows = _mixed_rows(data, wanted.file, wanted.source, rng)
        count = Counter(row["label"] for row in rows)
        large = [label for label in rng.permutation(sorted(count)) if count[label] >= min(wanted.per_class, 50)]
        chosen = set(large[: wanted.classes])
        rows = _first_of_each([row for row in rows if row["label"] in chosen], wanted.per_class)
        described = {row["label"]: [f"a photo of a {name}" for name in row["text"]] for row in rows}
        _write(folder, wanted.name, _changed(rows, wanted.change), described)
    digits = dict(packaged_descriptions("digits") or {})
    _write(folder, "scrawls-faint", _scrawls(render_all(held_out=True), faint), digits)


def _scrawls(
    faces_F10HW: Pixels, change: Callable[[Image.Image, np.random.Generator], Image.Image] = scrawl
) -> list[tuple[Image.Image, str]]:
    """Equally many of every digit, each of a face drawn at random, mixed."""
    rng = np.random.default_rng(0)
    drawn = [
        (change(Image.fromarray(faces_F10HW[rng.integers(len(faces_F10HW)), digit]).convert("RGB"), rng), str(digit))
        for digit in range(10)
        for _ in range(_PER_DIGIT)
    ]
    return [drawn[at] for at in rng.permutation(len(drawn))]


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


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
    write_further(Path(os.environ["RAYDAPT_DATA"]), Path(sys.argv[1]) / "further")
