"""The images of the miniature CLIP's pre-training, decoded once and then indexed as arrays.

Shapes: ``N`` images, ``H``/``W`` pixels, ``C`` colour channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from pretraining.clip_vocabulary import DIGIT_NAMES, Concept, Domain, Vocabulary, broaden
from pretraining.rendered_digits import render_all

PHOTO_PX = 48
AERIAL_PX = 64
HELD_OUT_EVERY = 40
FORMATS = ("JPEG", "PNG", "WEBP")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Images of one domain in memory, with what is known about each.

    Attributes:
        images_NHWC: uint8 pixels.
        names: Per image, its label and further names; empty for captioned images.
        captions: Per image, its captions; empty for labelled images.
        sources: Per image, the collection it comes from.
        held_out_N: Whether the image is kept for testing.
    """

    images_NHWC: Pixels
    names: list[tuple[str, ...]]
    captions: list[list[str]]
    sources: list[str]
    held_out_N: npt.NDArray[np.bool_]


def decode(encoded: bytes, size_px: int) -> Pixels:
    """Decodes one image to RGB and squashes it to a square: crops and aspect jitter follow on the tensor."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
        image = opened.convert("RGB")
    if image.size != (size_px, size_px):
        image = image.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(image)


def save_whole(pixels: Pixels, file: Path) -> None:
    """Saves an array so that other workers see all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.{os.getpid()}.npy")
    np.save(partial, pixels)
    partial.replace(file)


def read_bank(file: Path, *, size_px: int, cache: Path, threads: int = 2) -> Bank:
    """Reads a Parquet file of images, from ``cache`` when it was decoded before.

    Args:
        file: Parquet with the columns image, text, label, split and source.
        size_px: Side of the decoded squares.
        cache: Folder that keeps the decoded pixels between runs.
        threads: Decoding threads.
    """
    columns = pq.read_table(file, columns=["text", "label", "split", "source"]).to_pydict()
    kept = cache / f"{file.stem}-{size_px}-{file.stat().st_size}.npy"
    if not kept.exists():
        encoded = pq.read_table(file, columns=["image"]).column("image").to_pylist()
        with ThreadPoolExecutor(threads) as pool:
            pixels = np.stack(list(pool.map(lambda one: decode(one, size_px), encoded, chunksize=256)))
        save_whole(pixels, kept)
    labelled = [label is not None for label in columns["label"]]
    names = [
        () if label is None else broaden(label, text)
        for label, text in zip(columns["label"], columns["text"], strict=True)
    ]
    captions = [[] if known else list(text) for known, text in zip(labelled, columns["text"], strict=True)]
    official_N = np.array([split == "test" for split in columns["split"]])
    every_N = np.arange(len(names)) % HELD_OUT_EVERY == 0
    return Bank(
        images_NHWC=np.load(kept, mmap_mode="r"),  # workers of one machine share the pages
        names=names,
        captions=captions,
        sources=columns["source"],
        held_out_N=official_N if official_N.any() else every_N,
    )


def digit_bank(*, held_out: bool, cache: Path) -> Pixels:
    """The rendered digits images_F10HW, kept in ``cache`` so that all workers see the same faces."""
    kept = cache / f"digits-{'test' if held_out else 'train'}.npy"
    if not kept.exists():
        save_whole(render_all(held_out=held_out), kept)
    return np.asarray(np.load(kept))


def concepts_of(bank: Bank, domain: Domain) -> list[Concept]:
    """One concept per class: images with the same label are one class, whatever collection they come from."""
    merged: dict[str, dict[str, None]] = {}
    for names in bank.names:
        if names:
            merged.setdefault(names[0], {}).update(dict.fromkeys(names))
    return [Concept(domain=domain, names=tuple(names)) for names in merged.values()]


def digit_concepts() -> list[Concept]:
    """The ten digits, in words and in figures."""
    return [Concept(domain="digits", names=names) for names in DIGIT_NAMES]


def concept_ids(bank: Bank, domain: Domain, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """Per image, the index of its concept; -1 for captioned images."""
    return np.array([vocabulary.index[domain, names[0]] if names else -1 for names in bank.names])


def corpus(banks: Iterable[Bank]) -> list[str]:
    """All captions, for the tokenizer."""
    return [caption for bank in banks for captions in bank.captions for caption in captions]
