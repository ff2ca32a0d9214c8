"""Batches of the miniature captioner's pre-training: images or groups of four, a question and an answer about each.

A batch is a function of (seed, rank, step) alone, so a resumed run sees exactly what an undisturbed one would.

Shapes: ``N`` samples, ``G`` images of a group, ``L`` tokens, ``C`` concepts, ``W`` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pretraining import augment
from pretraining.captioner_looks import digit_words, picture_words, shared_words
from pretraining.captioner_model import IMAGE_TOKEN, CaptionerShape, conversation
from pretraining.captioner_sentences import Exchange, exchange_about, human_exchange
from pretraining.captioner_settings import CaptionerPretraining
from pretraining.clip_batches import BatchMaker, PretrainingImages, step_seed
from pretraining.clip_model import IMAGE_PX, MEAN, STD
from pretraining.clip_vocabulary import BROADER_WORDS
from pretraining.diffusion_batches import STYLE_DOMAINS, STYLE_LOOKS, STYLES
from pretraining.pretraining_data import Bank, concept_ids, digit_concepts

GROUP = 4
GAP_SHARE = 20 / 672
"""The gap between the images of a group, as a share of the canvas: the paper's."""
NAME_SHARES = {"broader": 0.5, "label": 0.4}
"""How a photographed class that has an everyday word above it is called; the rest of the time by a synonym."""
LABEL_SHARE = 0.75
"""How often a class without such a word is called by its label; otherwise by any of its names."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's tensors, in the order of `CaptioningTask.forward`."""

    images_NCHW: Tensor
    token_NL: Tensor
    present_NL: Tensor
    weight_NL: Tensor


def canvas_of(images_MGCHW: Tensor, side_px: int) -> Tensor:
    """Tiles groups of four images 2 x 2 on black canvases with a gap between them: canvas_MCHW in [0, 1]."""
    count = len(images_MGCHW)
    gap = max(1, round(side_px * GAP_SHARE))
    tile = (side_px - gap) // 2
    small = F.interpolate(images_MGCHW.flatten(0, 1), size=(tile, tile), mode="bicubic", antialias=True).clamp(0, 1)
    tiles_MGCHW = small.view(count, GROUP, *small.shape[1:])
    canvas = torch.zeros(count, small.shape[1], side_px, side_px)
    for at in range(GROUP):
        top, left = at // 2 * (tile + gap), at % 2 * (tile + gap)
        canvas[:, :, top : top + tile, left : left + tile] = tiles_MGCHW[:, at]
    return canvas


def encode_exchanges(
    tokenizer: Any, exchanges: Sequence[Exchange], *, image_tokens: int, name_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Conversations as tensors, padded at the right.

    Args:
        tokenizer: Of the captioner, with its chat template.
        exchanges: One per sample.
        image_tokens: How many placeholders an image takes.
        name_weight: Weight of the tokens that name the class.

    Returns:
        token_NL; present_NL, 0 for padding; and weight_NL, how much predicting each token counts: nothing in the
        question, 1 in the answer and the end of text after it, ``name_weight`` where the class is named.
    """
    texts, starts = [], []
    for one in exchanges:
        asked = tokenizer.apply_chat_template(conversation(one.question), tokenize=False, add_generation_prompt=True)
        asked = asked.replace(IMAGE_TOKEN, IMAGE_TOKEN * image_tokens)
        texts.append(f"{asked} {one.answer}{tokenizer.eos_token}")
        starts.append(len(asked))
    encoded = tokenizer(
        texts, padding=True, padding_side="right", return_tensors="pt", return_offsets_mapping=True,
        add_special_tokens=False,
    )  # fmt: skip
    ends_NL = encoded["offset_mapping"][..., 1]
    present_NL = encoded["attention_mask"]
    start_N1 = torch.tensor(starts)[:, None]
    span_N2 = torch.tensor([one.name_span for one in exchanges])
    in_answer = (ends_NL > start_N1 + 1) & present_NL.bool()
    named = (ends_NL > start_N1 + 1 + span_N2[:, :1]) & (ends_NL <= start_N1 + 1 + span_N2[:, 1:])
    weight_NL = in_answer.float() * torch.where(named, name_weight, 1.0)
    return encoded["input_ids"], present_NL, weight_NL


class ExchangeMaker:
    """Draws images, looks at them, and asks and answers questions about them."""

    def __init__(
        self,
        images: PretrainingImages,
        tokenizer: Any,
        settings: CaptionerPretraining,
        shape: CaptionerShape,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._images, self._tokenizer, self._settings, self._shape, self._rank = (
            images,
            tokenizer,
            settings,
            shape,
            rank,
        )
        self._count = settings.batch_size // world
        self._share_S = torch.tensor([settings.shares.get(style, 0.0) for style in STYLES], dtype=torch.float64)
        vocabulary = images.vocabulary
        photo_N = torch.from_numpy(concept_ids(images.photos, "photos", vocabulary))
        aerial_N = torch.from_numpy(concept_ids(images.aerial, "aerial", vocabulary))
        self._concept_N = {"photos": photo_N, "aerial": aerial_N}
        self._weight_N = {
            "photos": BatchMaker.weigh_photos(images.photos, settings.source_weights),
            "aerial": BatchMaker.balance_classes(images.aerial, aerial_N),
        }
        self._members = {
            concept: ((concept_N == concept) & (self._weight_N[domain] > 0)).nonzero().squeeze(1)
            for domain, concept_N in self._concept_N.items()
            for concept in sorted(set(concept_N.tolist()))
        }
        self._digit_concepts = [vocabulary.index["digits", one.label] for one in digit_concepts()]
        self._captioned = torch.from_numpy(np.flatnonzero(~images.captioned.held_out_N))
        self._mean_C11, self._std_C11 = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def make(self, step: int) -> Batch:
        """The batch of ``step`` for this rank."""
        seed = step_seed(self._settings.seed, self._rank, step)
        generator, random = torch.Generator().manual_seed(seed), Random(seed)
        images_NCHW, exchanges = self.draw(generator, random)
        token_NL, present_NL, weight_NL = encode_exchanges(
            self._tokenizer, exchanges, image_tokens=self._shape.image_tokens, name_weight=self._settings.name_weight
        )
        return Batch(
            images_NCHW=(images_NCHW - self._mean_C11) / self._std_C11,
            token_NL=token_NL,
            present_NL=present_NL,
            weight_NL=weight_NL,
        )

    def draw(self, generator: torch.Generator, random: Random) -> tuple[Tensor, list[Exchange]]:
        """The step's images in [0, 1] at the model's size, and an exchange about each."""
        settings = self._settings
        human = round(settings.scene_share * self._count)
        grouped = round(settings.group_share * self._count)
        pixels: list[Tensor] = []
        exchanges: list[Exchange] = []
        for count, group in ((self._count - human - grouped, 1), (grouped, GROUP)):
            style_N = torch.multinomial(self._share_S, max(1, count), replacement=True, generator=generator)[:count]
            for at, style in enumerate(STYLES):
                if (some := int((style_N == at).sum())) > 0:
                    images, spoken = self._style(style, some, group, generator, random)
                    pixels.append(images)
                    exchanges += spoken
        if human:
            images, spoken = self._scenes(human, generator, random)
            pixels.append(images)
            exchanges += spoken
        return torch.cat(pixels), exchanges

    def _style(
        self, style: str, count: int, group: int, generator: torch.Generator, random: Random
    ) -> tuple[Tensor, list[Exchange]]:
        raw, concepts = self._raw(STYLE_DOMAINS[style], count, group, generator)
        seen = _look(style, raw, generator)
        words = digit_words(seen) if style == "digits" else picture_words(seen)
        spoken = [
            exchange_about(
                style,
                self._name(concept, random),
                shared_words(words[at * group : (at + 1) * group]),
                random,
                group=group > 1,
                hint=self._hint(concept, random) if group == 1 else None,
            )
            for at, concept in enumerate(concepts)
        ]
        side = self._shape.image_px
        if group == 1:
            return F.interpolate(seen, size=(side, side), mode="bicubic").clamp(0, 1), spoken
        return canvas_of(seen.view(count, group, *seen.shape[1:]), side), spoken

    def _raw(self, domain: str, count: int, group: int, generator: torch.Generator) -> tuple[Tensor, list[int]]:
        """Source pixels of ``count`` times ``group`` images, those of a group of one class, and their concepts."""
        if domain == "digits":
            bank = self._images.digits_F10HW
            digit_N = torch.randint(10, (count,), generator=generator)
            face_N = torch.randint(len(bank), (count * group,), generator=generator)
            pixels = torch.from_numpy(bank[face_N.numpy(), digit_N.repeat_interleave(group).numpy()])
            return pixels.unsqueeze(1).float() / 255, [self._digit_concepts[digit] for digit in digit_N.tolist()]
        first_N = torch.multinomial(self._weight_N[domain], count, replacement=True, generator=generator)
        concepts = self._concept_N[domain][first_N].tolist()
        index_N = first_N
        if group > 1:
            draws = torch.rand(count, group, generator=generator)
            members = [self._members[concept] for concept in concepts]
            index_N = torch.cat([own[(row * len(own)).long()] for own, row in zip(members, draws, strict=True)])
        return _pixels(self._images.photos if domain == "photos" else self._images.aerial, index_N), concepts

    def _name(self, concept: int, random: Random) -> str:
        """What an answer calls a class: mostly its label or the everyday word above it."""
        one = self._images.vocabulary.concepts[concept]
        broader = [name for name in one.names[1:] if name in BROADER_WORDS] if one.domain == "photos" else []
        draw = random.random()
        if broader and draw < NAME_SHARES["broader"]:
            return random.choice(broader)
        if draw < (sum(NAME_SHARES.values()) if broader else LABEL_SHARE):
            return one.label
        return random.choice(one.names)

    def _hint(self, concept: int, random: Random) -> str | None:
        if random.random() >= self._settings.hint_share:
            return None
        concepts = self._images.vocabulary.concepts
        same = [one for one in concepts if one.domain == concepts[concept].domain]
        return concepts[concept].label if random.random() < 2 / 3 else random.choice(same).label

    def _scenes(self, count: int, generator: torch.Generator, random: Random) -> tuple[Tensor, list[Exchange]]:
        bank = self._images.captioned
        index_N = self._captioned[torch.randint(len(self._captioned), (count,), generator=generator)]
        seen = _look("photos", _pixels(bank, index_N), generator)
        side = self._shape.image_px
        images = F.interpolate(seen, size=(side, side), mode="bicubic").clamp(0, 1)
        return images, [human_exchange(bank.captions[at], random) for at in index_N.tolist()]


def _pixels(bank: Bank, index_N: Tensor) -> Tensor:
    pixels_NHWC = torch.from_numpy(np.ascontiguousarray(bank.images_NHWC[index_N.numpy()]))
    return pixels_NHWC.permute(0, 3, 1, 2).float() / 255


def _look(style: str, images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Augmented 32 px images of a style, often with other colours; digits as the miniature CLIP learned them."""
    if style == "digits":
        return augment.augment_digits(images_NCHW, generator, out_px=IMAGE_PX).clamp(0, 1)
    seen = STYLE_LOOKS[style](images_NCHW, generator).clamp(0, 1)
    strength = 0.5 if style == "photos" else 0.8
    seen = augment.sometimes(
        seen, 0.5, generator, lambda some: augment.colour_jitter(some, generator, strength=strength)
    )
    return augment.resample_some(seen, generator, sizes_px=(12, 16, 20, 24), probability=0.15).clamp(0, 1)
