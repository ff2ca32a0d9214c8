"""Zero-shot figures of an open_clip folder on the targets and on the held-out part of the training sources.

    RAYDAPT_DATA=… python -m pretraining.clip_evaluation raydapt/models/mini/clip

It loads the folder the way any open_clip user would. The targets (scikit-learn's digits, EuroSAT, the cartoons of
PACS) are never trained on.

Shapes: ``N`` images, ``C`` classes, ``T`` templates, ``D`` embedding width.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pretraining.clip_vocabulary import DIGIT_NAMES
from pretraining.pretraining_data import FORMATS, HELD_OUT_EVERY
from pretraining.rendered_digits import FontsMissingError, render_all

BATCH = 256
WORDS = tuple(names[0] for names in DIGIT_NAMES)
FIGURES = tuple(names[1] for names in DIGIT_NAMES)


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """A loaded model with its preprocessing and tokenizer."""

    model: Any
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]

    @classmethod
    def load(cls, folder: Path) -> Zoo:
        """Loads an open_clip ``local-dir`` folder."""
        name = f"local-dir:{folder}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        return cls(model=model.eval(), preprocess=preprocess, tokenize=open_clip.get_tokenizer(name))

    @torch.no_grad()
    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        """Unit embeddings images_ND."""
        parts = [self.model.encode_image(torch.stack(some), normalize=True) for some in self._batches(images)]
        return torch.cat(parts)

    def _batches(self, images: Iterable[Image.Image]) -> Iterator[list[Tensor]]:
        waiting: list[Tensor] = []
        for image in images:
            waiting.append(self.preprocess(image))
            if len(waiting) == BATCH:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    @torch.no_grad()
    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Unit class embeddings classes_CD: the mean over templates."""
        texts = [template.format(name) for name in names for template in templates]
        embedded = torch.cat(
            [
                self.model.encode_text(self.tokenize(texts[at : at + BATCH]), normalize=True)
                for at in range(0, len(texts), BATCH)
            ]
        )
        return F.normalize(embedded.view(len(names), len(templates), -1).mean(1), dim=1)


def top1(images_ND: Tensor, classes_CD: Tensor, label_N: Tensor) -> float:
    """Share of images whose nearest class is their own."""
    return float(((images_ND @ classes_CD.T).argmax(1) == label_N).float().mean())


def parquet_images(file: Path, splits: Sequence[str] | None, every: int = 1) -> tuple[list[str], Iterator[Image.Image]]:
    """Labels and (lazily decoded) images of a Parquet file's rows in ``splits``, one in ``every``."""
    table = pq.read_table(file, columns=["image", "label", "split"]).to_pydict()
    rows = [at for at in range(0, len(table["label"]), every) if splits is None or table["split"][at] in splits]
    images = (Image.open(io.BytesIO(table["image"][at]), formats=FORMATS).convert("RGB") for at in rows)
    return [table["label"][at] for at in rows], images


def score(zoo: Zoo, labels: Sequence[str], images: Iterable[Image.Image], templates: Sequence[str]) -> dict[str, float]:
    """Top-1 with each template by itself and with all of them; names are the labels in lower case."""
    names = sorted(set(labels))
    label_N = torch.tensor([names.index(label) for label in labels])
    images_ND = zoo.embed_images(images)
    return score_embedded(zoo, images_ND, label_N, [name.lower() for name in names], templates)


def score_embedded(
    zoo: Zoo, images_ND: Tensor, label_N: Tensor, names: Sequence[str], templates: Sequence[str]
) -> dict[str, float]:
    """Like `score` for embedded images."""
    single = {one: top1(images_ND, zoo.classifier(names, [one]), label_N) for one in templates}
    return {**single, "ensemble": top1(images_ND, zoo.classifier(names, templates), label_N)}


def score_digits(zoo: Zoo) -> dict[str, dict[str, float]]:
    """scikit-learn's handwritten digits, named in words and in figures."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (Image.fromarray((image * 255 / 16).round().astype(np.uint8)).convert("RGB") for image in data.images)
    images_ND, label_N = zoo.embed_images(images), torch.from_numpy(data.target)
    templates = ("a photo of the digit {}.", "a photo of the number {}.", 'a photo of the number: "{}".')
    return {
        "digits, words": score_embedded(zoo, images_ND, label_N, WORDS, templates),
        "digits, figures": score_embedded(zoo, images_ND, label_N, FIGURES, templates),
    }


def score_rendered(zoo: Zoo) -> dict[str, float]:
    """Digits rendered from the font families that training never saw, as they are."""
    faces_F10HW = render_all(held_out=True)
    label_N = torch.arange(10).repeat(len(faces_F10HW))
    images = (Image.fromarray(pixels).convert("RGB") for pixels in faces_F10HW.reshape(-1, *faces_F10HW.shape[2:]))
    return score_embedded(zoo, zoo.embed_images(images), label_N, WORDS, ("a photo of the digit {}.",))


def evaluate(folder: Path, data: Path | None) -> dict[str, dict[str, float]]:
    """All figures that the machine allows: without data only digits, without fonts no rendered ones."""
    zoo = Zoo.load(folder)
    figures = score_digits(zoo)
    try:
        figures["rendered digits, held-out fonts"] = score_rendered(zoo)
    except FontsMissingError as error:
        sys.stderr.write(f"{error}\n")
    if data is None:
        return figures
    satellite = ("a satellite photo of {}.", "a centered satellite photo of {}.", "a photo of a {}.")
    drawn = ("a cartoon of a {}.", "a photo of a {}.")
    pretrain = data / "pretrain"
    figures["eurosat, test"] = score(zoo, *parquet_images(data / "eurosat.parquet", ["test"]), satellite)
    cartoons = data / "pacs_cartoon.parquet"
    figures["pacs cartoon, test"] = score(zoo, *parquet_images(cartoons, ["test"]), drawn)
    figures["pacs cartoon, all"] = score(zoo, *parquet_images(cartoons, None), drawn)
    figures["aerial, held out"] = score(zoo, *parquet_images(pretrain / "aerial.parquet", ["test"]), satellite)
    photos = parquet_images(pretrain / "photos.parquet", None, HELD_OUT_EVERY)
    figures["photos, held out"] = score(zoo, *photos, ("a photo of a {}.",))
    return figures


def main(arguments: Sequence[str]) -> int:
    """Prints the figures of the given folder as JSON."""
    data = os.environ.get("RAYDAPT_DATA")
    figures = evaluate(Path(arguments[0]), Path(data) if data else None)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
