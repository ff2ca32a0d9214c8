"""Captions of images and of groups of images: what they depend on, and how they are read.

Legend: N training images, T distinct texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydapt.data.caption_prompts import caption_prompts
from raydapt.data.classes import ClassSpace
from raydapt.data.sources import Source
from raydapt.errors import UserError
from raydapt.models.language import who_answers
from raydapt.settings.groups import DataSettings
from raydapt.settings.language import CaptionSettings
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

IMAGE_CAPTIONS, GROUP_CAPTIONS = "image_captions", "group_captions"
"""The two kinds."""
_MOST_CHARACTERS = 4000
PIECE_ROWS = 64
_PIECES_PER_PART = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some rows of a part of a source, described and committed together: little is lost where a server or engine dies.

    Attributes:
        number: In the order of the rows. Never the number of a part of a source: captions of former versions had those.
        part: The part's index.
        start: First row within the part.
        stop: Row after the last one; None: the part's end, where only reading tells it.
    """

    number: int
    part: int
    start: int
    stop: int | None


def pieces_of(source: Source) -> list[Piece]:
    """The pieces that the captions of a source are made in."""
    pieces = []
    for part in source.parts:
        starts = range(0, max(part.rows or 1, 1), PIECE_ROWS) if part.rows is not None else [0]
        for place, start in enumerate(starts):
            stop = None if part.rows is None else min(start + PIECE_ROWS, part.rows)
            number = (part.index + 1) * _PIECES_PER_PART + place
            pieces.append(Piece(number=number, part=part.index, start=start, stop=stop))
    return pieces


@dataclass(frozen=True, kw_only=True)
class Captions:
    """One text per image, or none; a text that many images share is held once."""

    texts: tuple[str, ...]
    """T distinct texts."""
    text_N: Tensor
    """int64 text of every training image, -1 where it has none."""


def first_line(text: str | None) -> str | None:
    """What of a captioner's answer is the caption, as the authors read it; None for no answer, or one of spaces."""
    lines = (text or "").strip().splitlines()
    return lines[0].strip() if lines else None


def captions_of(captions: Sequence[str | None]) -> Captions:
    """Captions in the order of the images; of each the first line, and an empty one is none (LatteCLIP)."""
    number: dict[str, int] = {}
    text_N = []
    for caption in captions:
        line = first_line(caption)
        text_N.append(-1 if line is None else number.setdefault(line, len(number)))
    return Captions(texts=tuple(number), text_N=torch.tensor(text_N, dtype=torch.int64))


def caption_recipes(
    captioner: CaptionSettings,
    data: DataSettings,
    source: Source,
    classes: ClassSpace | None = None,
    features: Recipe | None = None,
    *,
    all_splits: bool = False,
) -> dict[str, Recipe]:
    """What the captions depend on, by kind; loads no model.

    Args:
        captioner: The model, the prompts and how images are shown.
        data: The source, its splits and the limits of decoding.
        source: The images.
        classes: The classes; None for captions of images without regard to a class.
        features: The recipe of the features that the zero-shot classes come from, with `classes`.
        all_splits: All images are described; without, those that are adapted to alone.

    Raises:
        UserError: For a model or a prompt that cannot work.
    """
    image_prompt, group_prompt = checked_prompts(captioner, data)
    _, identity = who_answers(captioner, setting="caption")
    limits = {"max_image_bytes": data.max_image_bytes, "max_image_pixels": data.max_image_pixels}
    shared: dict[str, Any] = limits | {"max_tokens": captioner.max_tokens, "greedy": captioner.greedy}
    shared |= {"image_px": captioner.image_px, "max_model_len": captioner.max_model_len}
    if classes is not None and not all_splits:
        shared["splits"] = [data.train_splits, data.test_splits]
    words: dict[str, Any] = (
        {} if classes is None else {"class_names": list(classes.names), "template": classes.templates[0]}
    )
    if classes is not None and data.class_prior != "unknown":  # it shifts the zero-shot classes
        words["class_prior"] = data.class_prior
    canvas: dict[str, Any] = {"canvas_px": captioner.canvas_px, "gap_px": captioner.gap_px, "seed": captioner.seed}
    if not all_splits and data.rejects:  # it decides whom a group is drawn from
        canvas["reject"] = data.reject
    recipes = {}
    for kind, prompt, own in ((IMAGE_CAPTIONS, image_prompt, {}), (GROUP_CAPTIONS, group_prompt, canvas)):
        of_classes = kind == GROUP_CAPTIONS or "{}" in prompt
        if of_classes and (classes is None or features is None):
            continue
        by_class = of_classes or "splits" in shared  # which images there are to adapt to is known from the features
        recipes[kind] = Recipe(
            kind=kind,
            settings=shared | {"prompt": prompt} | own | (words if of_classes else {}),
            inputs=(features.fingerprint,) if features is not None and by_class else (source.identity,),
            weights=identity,
        )
    return recipes


def checked_prompts(captioner: CaptionSettings, data: DataSettings) -> tuple[str, str]:
    """The prompts for images and groups, those of the set where the settings leave them open.

    Raises:
        UserError: For a prompt that cannot work.
    """
    own_image, own_group = caption_prompts(data.source)
    image = own_image if captioner.image_prompt == "auto" else captioner.image_prompt
    group = own_group if captioner.group_prompt == "auto" else captioner.group_prompt
    for name, prompt in (("image_prompt", image), ("group_prompt", group)):
        if not prompt.strip() or len(prompt) > _MOST_CHARACTERS or prompt.count("{}") > 1:
            raise UserError(
                f"Setting caption.{name}={prompt[:60]!r} must be a text of at most {_MOST_CHARACTERS} characters with "
                "at most one {}, the place of the class."
            )
    return image, group


def load_captions(artefact: Artefact) -> list[str | None]:
    """The first line of every caption, in the order of the features; None for no caption."""
    tables = artefact.iter_tables(["caption"])
    return [first_line(text) for table in tables for text in table["caption"].to_pylist()]
