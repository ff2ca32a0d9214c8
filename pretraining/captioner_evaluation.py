"""How often a captioner's greedy sentence names what is in the image: held-out source images, groups, and the targets.

    RAYDAPT_DATA=… python -m pretraining.captioner_evaluation raydapt/models/mini/captioner [most images per set]

It loads the folder the way any user of transformers would. A sentence is right when one of the class's names (its
label, its synonyms, the everyday words above it) stands in it as whole words. Labels serve for counting only; the
targets (scikit-learn's digits, EuroSAT, the cartoons of PACS) are never trained on.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from pretraining.captioner_model import captioner_folder, conversation
from pretraining.captioner_sentences import GROUP_QUESTION, SINGLE_QUESTION, THINGS
from pretraining.clip_evaluation import parquet_images
from pretraining.clip_vocabulary import DIGIT_NAMES, broaden
from pretraining.pretraining_data import HELD_OUT_EVERY
from pretraining.rendered_digits import FontsMissingError, render_all

BATCH = 64
NEW_TOKENS = 32
GROUP = 4
CANVAS_PX, GAP_PX = 672, 20

EUROSAT_NAMES = {
    "annual crop land": ("farmland", "crop land", "agricultural fields"),
    "permanent crop land": ("farmland", "crop land", "agricultural fields"),
    "forest": ("woodland", "trees"),
    "herbaceous vegetation land": ("grassland", "meadow"),
    "highway or road": ("highway", "road"),
    "industrial buildings": ("industrial area", "factories"),
    "pasture land": ("grassland", "meadow"),
    "residential buildings": ("residential area", "houses"),
    "river": ("stream", "waterway"),
    "sea or lake": ("lake", "sea", "water"),
}
"""What the aerial collections call the classes of EuroSAT, whose words none of their images is labelled with."""

Named = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """A loaded LLaVA with its processor."""

    model: Any
    processor: Any

    @classmethod
    def load(cls, name: str) -> Captioner:
        """Loads ``mini`` or a folder in LLaVA's layout."""
        folder = captioner_folder(name)
        model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        processor: Any = AutoProcessor
        return cls(model=model.eval(), processor=processor.from_pretrained(folder))

    @torch.no_grad()
    def describe(self, images: Iterable[Image.Image], question: str) -> list[str]:
        """The greedy answer about each image."""
        prompt = self.processor.apply_chat_template(conversation(question), add_generation_prompt=True)
        waiting, captions = iter(images), list[str]()
        while some := list(islice(waiting, BATCH)):
            inputs = self.processor(images=some, text=[prompt] * len(some), return_tensors="pt")
            tokens_NL = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            answers_NL = tokens_NL[:, inputs["input_ids"].shape[1] :]
            captions += [text.strip() for text in self.processor.batch_decode(answers_NL, skip_special_tokens=True)]
        return captions


def names_it(caption: str, names: Sequence[str]) -> bool:
    """Whether one of ``names`` stands in the caption as whole words, in the singular or with an s."""
    return any(re.search(rf"\b{re.escape(name.lower())}s?\b", caption.lower()) for name in names)


def share_right(captions: Sequence[str], names: Sequence[Named]) -> float:
    """The share of captions that name their class."""
    return sum(names_it(caption, own) for caption, own in zip(captions, names, strict=True)) / len(captions)


def canvas(images: Sequence[Image.Image]) -> Image.Image:
    """Four images tiled 2 x 2 on a black canvas: 672 px with a gap of 20 px, aspect kept, as LatteCLIP shows groups."""
    tile = (CANVAS_PX - GAP_PX) // 2
    whole = Image.new("RGB", (CANVAS_PX, CANVAS_PX))
    for at, image in enumerate(images):
        scale = tile / max(image.size)
        fitted = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        left, top = at % 2 * (tile + GAP_PX), at // 2 * (tile + GAP_PX)
        whole.paste(fitted, (left + (tile - fitted.width) // 2, top + (tile - fitted.height) // 2))
    return whole


def groups_of(images: Sequence[Image.Image], names: Sequence[Named]) -> tuple[list[Image.Image], list[Named]]:
    """Canvases of four images of one class, each image in at most one; what is left over is dropped."""
    members: dict[Named, list[Image.Image]] = {}
    for image, own in zip(images, names, strict=True):
        members.setdefault(own, []).append(image)
    canvases, kept = list[Image.Image](), list[Named]()
    for own, of_class in members.items():
        for at in range(0, len(of_class) - GROUP + 1, GROUP):
            canvases.append(canvas(of_class[at : at + GROUP]))
            kept.append(own)
    return canvases, kept


def score(
    captioner: Captioner, images: Iterable[Image.Image], names: Sequence[Named], thing: str, medium: str
) -> dict[str, Any]:
    """Shares of right sentences about single images and about groups, with their numbers and three examples."""
    kept = list(images)
    captions = captioner.describe(kept, SINGLE_QUESTION.format(thing, medium))
    told = [f"{own[0]}: {caption}" for own, caption in zip(names, captions, strict=True)]
    figures: dict[str, Any] = {
        "images": len(kept),
        "classes": len(set(names)),
        "named right": share_right(captions, names),
        "label named": share_right(captions, [own[:1] for own in names]),
        "different sentences": len(set(captions)),
        "examples": told[:: len(told) // 3 + 1],
    }
    canvases, group_names = groups_of(kept, names)
    if canvases:
        answers = captioner.describe(canvases, GROUP_QUESTION.format(THINGS[thing], f"{medium}s"))
        figures["groups"] = len(canvases)
        figures["groups named right"] = share_right(answers, group_names)
    return figures


def known_names(file: Path, splits: Sequence[str] | None, every: int) -> list[Named]:
    """Per row, all names of its class as in training; in the order of `parquet_images`."""
    table = pq.read_table(file, columns=["text", "label", "split"]).to_pydict()
    rows = [at for at in range(0, len(table["label"]), every) if splits is None or table["split"][at] in splits]
    merged: dict[str, dict[str, None]] = {}
    for label, text in zip(table["label"], table["text"], strict=True):
        merged.setdefault(label, {}).update(dict.fromkeys(broaden(label, text)))
    return [(*merged[label], *EUROSAT_NAMES.get(label.lower(), ())) for label in (table["label"][at] for at in rows)]


def spread(count: int, most: int | None) -> slice:
    """Every n-th of ``count`` rows, so that about ``most`` remain."""
    return slice(None, None, 1 if most is None else max(1, count // most))


def score_file(
    captioner: Captioner, file: Path, splits: Sequence[str] | None, thing: str, medium: str,
    *, every: int = 1, most: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`score` on rows of a Parquet file."""
    names = known_names(file, splits, every)
    _, images = parquet_images(file, splits, every)
    kept = spread(len(names), most)
    return score(captioner, islice(images, None, None, kept.step), names[kept], thing, medium)


def handwritten() -> tuple[Iterator[Image.Image], list[Named]]:
    """scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (Image.fromarray((image * 255 / 16).round().astype(np.uint8)).convert("RGB") for image in data.images)
    return images, [DIGIT_NAMES[digit] for digit in data.target.tolist()]


def evaluate(folder: str, data: Path | None, most: int | None = None) -> dict[str, dict[str, Any]]:
    """All figures that the machine allows: without data only digits, without fonts no rendered ones."""
    captioner = Captioner.load(folder)
    images, names = handwritten()
    kept = spread(len(names), most)
    figures = {
        "digits": score(captioner, islice(images, None, None, kept.step), names[kept], "digit", "photo"),
    }
    try:
        faces_F10HW = render_all(held_out=True)
        faces_F10HW = faces_F10HW[spread(len(faces_F10HW), None if most is None else most // 10)]
        drawn = [Image.fromarray(pixels).convert("RGB") for face in faces_F10HW for pixels in face]
        own = [names for _ in faces_F10HW for names in DIGIT_NAMES]
        figures["rendered digits, held-out fonts"] = score(captioner, drawn, own, "digit", "photo")
    except FontsMissingError as error:
        sys.stderr.write(f"{error}\n")
    if data is None:
        return figures
    aerial, photos = data / "pretrain" / "aerial.parquet", data / "pretrain" / "photos.parquet"
    figures["aerial, held out"] = score_file(captioner, aerial, ["test"], "land use", "satellite image", most=most)
    figures["photos, held out"] = score_file(
        captioner, photos, None, "object", "photo", every=HELD_OUT_EVERY, most=most
    )
    figures["eurosat, test"] = score_file(
        captioner, data / "eurosat.parquet", ["test"], "land use", "satellite image", most=most
    )
    figures["pacs cartoon, test"] = score_file(
        captioner, data / "pacs_cartoon.parquet", ["test"], "object", "photo", most=most
    )
    return figures


def main(arguments: Sequence[str]) -> int:
    """Prints the figures of the given folder as JSON."""
    data = os.environ.get("RAYDAPT_DATA")
    most = int(arguments[1]) if len(arguments) > 1 else None
    figures = evaluate(arguments[0], Path(data) if data else None, most)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
