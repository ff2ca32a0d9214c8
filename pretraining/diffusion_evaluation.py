"""How often the miniature CLIP recognises the images of a pipeline, beside how often it recognises real ones.

    RAYDAPT_DATA=… python -m pretraining.diffusion_evaluation raydapt/models/mini/diffusion [grid.png [guidance]]

Per domain: real images that neither model was trained on, the same after the autoencoder, and synthetic images of the
same classes; zero-shot among all classes of the domain, by the prompt that the images were made of. Everything is
seeded. For the three targets, whose images are not looked at, only synthetic images are counted.

Shapes: ``N`` images, ``C`` classes, ``H``/``W`` pixels.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretraining.clip_evaluation import BATCH, WORDS, Zoo, parquet_images, top1
from pretraining.diffusion_model import CLIP_FOLDER
from pretraining.pretraining_data import HELD_OUT_EVERY
from pretraining.rendered_digits import render_all
from raydapt.data.named_sets import named_set
from raydapt.models.diffusion import ImageMaker, Sampling
from raydapt.models.pipelines import load_pipeline

SAMPLING = Sampling(scheduler="dpm++", steps=20, guidance=7.5, negative_prompt="", size_px=32, seed=0, batch_size=20)
TARGETS = ("digits", "eurosat", "pacs_cartoon")


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Classes with a prompt, and held-out real images of them where there are any."""

    names: tuple[str, ...]
    template: str
    per_class: int
    images: tuple[Image.Image, ...] = ()
    label_N: Tensor | None = None


def labelled(rows: tuple[Sequence[str], Iterable[Image.Image]], template: str, per_class: int) -> Domain:
    """A domain from labels and images."""
    labels, images = rows
    names = sorted(set(labels))
    return Domain(
        names=tuple(name.lower() for name in names),
        template=template,
        per_class=per_class,
        images=tuple(images),
        label_N=torch.tensor([names.index(label) for label in labels]),
    )


def source_domains(data: Path) -> dict[str, Domain]:
    """The domains that both models were trained on, with what was held out."""
    pretrain = data / "pretrain"
    faces_F10HW = render_all(held_out=True)
    pixels_NHW = faces_F10HW.reshape(-1, *faces_F10HW.shape[2:])
    digits = Domain(
        names=WORDS,
        template="a photo of the digit {}.",
        per_class=30,
        images=tuple(Image.fromarray(pixels).convert("RGB") for pixels in pixels_NHW),
        label_N=torch.arange(10).repeat(len(faces_F10HW)),
    )
    photos = parquet_images(pretrain / "photos.parquet", None, HELD_OUT_EVERY)
    aerial = parquet_images(pretrain / "aerial.parquet", ["test"])
    return {
        "photos": labelled(photos, "a photo of a {}.", 2),
        "aerial": labelled(aerial, "a satellite photo of {}.", 20),
        "rendered digits": digits,
    }


def target_domains() -> dict[str, Domain]:
    """The classes of the three targets, without images."""
    known = {name: named_set(name) for name in TARGETS}
    return {
        name: Domain(names=one.class_names, template=one.templates[0], per_class=20)
        for name, one in known.items()
        if one is not None
    }


def recognised(zoo: Zoo, domain: Domain, images: Iterable[Image.Image], label_N: Tensor) -> float:
    """Share of images that the CLIP calls by their class, in percent."""
    classes_CD = zoo.classifier(domain.names, [domain.template])
    return round(100 * top1(zoo.embed_images(images), classes_CD, label_N), 1)


def synthetic_images(maker: ImageMaker, domain: Domain) -> list[Image.Image]:
    """``per_class`` images of every class, class after class."""
    images = []
    for name in domain.names:
        for start in range(0, domain.per_class, SAMPLING.batch_size):
            indices = range(start, min(start + SAMPLING.batch_size, domain.per_class))
            pixels = maker.make(domain.template.format(name), name, indices)
            images += [Image.fromarray(pixel_HW3) for pixel_HW3 in pixels]
    return images


@torch.no_grad()
def rebuilt(pipeline: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images after the autoencoder: what no denoiser can be better than."""
    side, out = SAMPLING.size_px, []
    for start in range(0, len(images), BATCH):
        small = [image.resize((side, side), Image.Resampling.BICUBIC) for image in images[start : start + BATCH]]
        pixels_NHWC = torch.from_numpy(np.stack([np.asarray(image) for image in small]))
        pixels_NCHW = pixels_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
        decoded = pipeline.vae.decode(pipeline.vae.encode(pixels_NCHW).latent_dist.mode()).sample
        bytes_NHWC = ((decoded + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        out += [Image.fromarray(pixel_HWC) for pixel_HWC in bytes_NHWC]
    return out


def evaluate(
    folder: str, data: Path, grid: Path | None = None, *, sampling: Sampling = SAMPLING
) -> dict[str, dict[str, float]]:
    """All shares in percent; writes one row of images per class (photos: the first ten) to ``grid``."""
    torch.set_num_threads(1)
    zoo, pipeline = Zoo.load(CLIP_FOLDER), load_pipeline(folder)
    figures, rows = {}, []
    for name, domain in (source_domains(data) | target_domains()).items():
        batched = replace(sampling, batch_size=min(sampling.batch_size, domain.per_class))
        maker = ImageMaker(load_pipeline(folder), batched)
        images = synthetic_images(maker, domain)
        label_N = torch.arange(len(domain.names)).repeat_interleave(domain.per_class)
        shares = {"synthetic": recognised(zoo, domain, images, label_N)}
        if domain.label_N is not None:
            shares["real"] = recognised(zoo, domain, domain.images, domain.label_N)
            shares["rebuilt"] = recognised(zoo, domain, rebuilt(pipeline, domain.images), domain.label_N)
            shares["synthetic / real"] = round(shares["synthetic"] / shares["real"], 2)
        key = f"{name} (target)" if domain.label_N is None else name
        figures[key] = shares
        for at in range(min(10, len(domain.names))):
            rows.append(np.concatenate([np.asarray(one) for one in images[at * domain.per_class :][:12]], axis=1))
        sys.stderr.write(f"{key}: {shares}\n")
    if grid is not None:
        widest = max(row.shape[1] for row in rows)
        padded = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows]
        Image.fromarray(np.concatenate(padded)).save(grid)
    return figures


def main(arguments: Sequence[str]) -> int:
    """Prints the figures of the given folder as JSON."""
    data = os.environ.get("RAYDAPT_DATA")
    if not data:
        sys.stderr.write("Set RAYDAPT_DATA to the folder that holds pretrain/.\n")
        return 2
    grid = Path(arguments[1]) if len(arguments) > 1 else None
    guidance = float(arguments[2]) if len(arguments) > 2 else SAMPLING.guidance
    figures = evaluate(arguments[0], Path(data), grid, sampling=replace(SAMPLING, guidance=guidance))
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
