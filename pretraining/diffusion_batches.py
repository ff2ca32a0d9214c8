"""Images and texts of the miniature diffusion model's pre-training: who is drawn, how it looks, what it is called.

Images come in five styles. What a style does to an image is what its sentences say: photos stay photos, "a cartoon of"
or "a drawing of" is a photo turned into one, satellite views are aerial ones from far and through haze. Everything is a
function of (seed, step).

Shapes: ``N`` images, ``C`` concepts, ``W`` names, ``S`` styles, ``T`` texts, ``L`` tokens, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pretraining import augment
from pretraining.clip_batches import BatchMaker, PretrainingImages
from pretraining.clip_model import IMAGE_PX
from pretraining.clip_vocabulary import DIGIT_TEMPLATES, Domain, Vocabulary
from pretraining.pretraining_data import concept_ids, digit_concepts

STYLE_DOMAINS: Mapping[str, Domain] = {
    "photos": "photos",
    "cartoons": "photos",
    "aerial": "aerial",
    "satellite": "aerial",
    "digits": "digits",
}
STYLE_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "photos": ("a photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a photo of {}.", "an image of a {}."),
    "cartoons": ("a cartoon of a {}.", "a cartoon of a {}.", "a cartoon {}.", "a drawing of a {}.",
                 "an illustration of a {}."),
    "aerial": ("an aerial photo of {}.", "an aerial view of {}.", "an aerial photo of a {}.", "a photo of {}."),
    "satellite": ("a satellite photo of {}.", "a centered satellite photo of {}.", "a satellite image of {}.",
                  "a centered satellite photo of a {}.", "satellite imagery of {}."),
    "digits": DIGIT_TEMPLATES[:-1],
}  # fmt: skip
STYLES = tuple(STYLE_DOMAINS)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images with what is known of them: images_N3HW in [0, 1], concept_N, style_N (an index of `STYLES`)."""

    images_NCHW: Tensor
    concept_N: Tensor
    style_N: Tensor


def plain_photos(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Crops and mirrors."""
    wide = augment.affine(images_NCHW, generator, out_px=2 * IMAGE_PX, scale=(0.75, 1.0), aspect=0.15, degrees=3)
    return F.avg_pool2d(wide, 2)


def drawn_photos(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Photos turned into cartoons, one in seven into a line drawing."""
    plain = plain_photos(images_NCHW, generator)
    draw = torch.rand(len(plain), 1, 1, 1, generator=generator)
    return torch.where(draw < 1 / 7, augment.line_drawing(plain, generator), augment.cartoon(plain, generator))


def aerial_views(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """All eight orientations, near and far."""
    wide = augment.affine(
        images_NCHW, generator, out_px=2 * IMAGE_PX, scale=(0.6, 1.2), aspect=0.15, degrees=5, quarter_turns=True
    )
    return F.avg_pool2d(wide, 2)


def satellite_views(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Aerial views from far above, soft, and half of them through haze."""
    wide = augment.affine(
        images_NCHW, generator, out_px=2 * IMAGE_PX, scale=(0.8, 1.7), aspect=0.15, degrees=5, quarter_turns=True
    )
    images = F.avg_pool2d(wide, 2)
    images = augment.sometimes(images, 0.5, generator, lambda some: augment.haze(some, generator))
    images = augment.sometimes(images, 0.4, generator, augment.blur)
    coarsen = partial(augment.low_resolution, size_px=16)
    return augment.sometimes(images, 0.2, generator, coarsen)


def drawn_digits(images_N1HW: Tensor, generator: torch.Generator) -> Tensor:
    """Sheared, bent, thick or thin, filling the frame, often coarse; white on black, one in ten inverted."""
    images = augment.sometimes(images_N1HW, 0.25, generator, lambda some: F.max_pool2d(some, 3, 1, 1))
    images = augment.affine(
        images, generator, out_px=IMAGE_PX, scale=(0.8, 1.1), aspect=0.5, degrees=12, shear=0.3, shift=0.08,
        flip=False, elastic=0.06, padding="zeros",
    )  # fmt: skip
    for size, share in ((8, 0.5), (12, 0.3), (16, 0.3)):
        images = augment.sometimes(images, share, generator, partial(augment.low_resolution, size_px=size))
    images = images.expand(-1, 3, -1, -1).contiguous()
    return augment.sometimes(images, 0.1, generator, augment.invert)


STYLE_LOOKS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "photos": plain_photos,
    "cartoons": drawn_photos,
    "aerial": aerial_views,
    "satellite": satellite_views,
    "digits": drawn_digits,
}


class ImageDrawer:
    """Draws augmented training images in fixed shares of the styles."""

    def __init__(
        self, images: PretrainingImages, *, shares: Mapping[str, float], source_weights: Mapping[str, float]
    ) -> None:
        self._images = images
        self._share_S = torch.tensor([shares.get(style, 0.0) for style in STYLES], dtype=torch.float64)
        vocabulary = images.vocabulary
        self._concepts = {
            "photos": torch.from_numpy(concept_ids(images.photos, "photos", vocabulary)),
            "aerial": torch.from_numpy(concept_ids(images.aerial, "aerial", vocabulary)),
        }
        self._weights = {
            "photos": BatchMaker.weigh_photos(images.photos, source_weights),
            "aerial": BatchMaker.balance_classes(images.aerial, self._concepts["aerial"]),
        }
        self._digit_concepts = torch.tensor([vocabulary.index["digits", c.label] for c in digit_concepts()])

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """``count`` images, style after style."""
        style_N = torch.multinomial(self._share_S, count, replacement=True, generator=generator).sort().values
        parts = [self._draw_style(style, int((style_N == at).sum()), generator) for at, style in enumerate(STYLES)]
        return Drawn(
            images_NCHW=torch.cat([images for images, _ in parts]),
            concept_N=torch.cat([concepts for _, concepts in parts]),
            style_N=style_N,
        )

    def _draw_style(self, style: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if count == 0:
            return torch.empty(0, 3, IMAGE_PX, IMAGE_PX), torch.empty(0, dtype=torch.long)
        domain = STYLE_DOMAINS[style]
        if domain == "digits":
            bank = self._images.digits_F10HW
            face_N = torch.randint(len(bank), (count,), generator=generator)
            digit_N = torch.randint(10, (count,), generator=generator)
            pixels = torch.from_numpy(bank[face_N.numpy(), digit_N.numpy()]).unsqueeze(1).float() / 255
            return STYLE_LOOKS[style](pixels, generator), self._digit_concepts[digit_N]
        source = self._images.photos if domain == "photos" else self._images.aerial
        index_N = torch.multinomial(self._weights[domain], count, replacement=True, generator=generator)
        pixels_NHWC = torch.from_numpy(np.ascontiguousarray(source.images_NHWC[index_N.numpy()]))
        pixels = pixels_NHWC.permute(0, 3, 1, 2).float() / 255
        return STYLE_LOOKS[style](pixels, generator).clamp(0, 1), self._concepts[domain][index_N]


class TextTable:
    """The encoded sentences of every (style, name, template), so that a step only looks rows up.

    Attributes:
        states_TLD: One row per sentence, half precision; row 0 is the empty text.
    """

    def __init__(self, vocabulary: Vocabulary, encode: Callable[[list[str]], Tensor]) -> None:
        self._vocabulary = vocabulary
        texts = [""]
        self._first_SW = torch.full((len(STYLES), len(vocabulary.names)), -1)
        for at, style in enumerate(STYLES):
            for name in vocabulary.names_of(STYLE_DOMAINS[style]):
                self._first_SW[at, name] = len(texts)
                texts += [template.format(vocabulary.names[name]) for template in STYLE_TEMPLATES[style]]
        self._count_S = torch.tensor([len(STYLE_TEMPLATES[style]) for style in STYLES])
        self.texts = tuple(texts)
        self.states_TLD = encode(texts)

    def draw_rows(self, concept_N: Tensor, style_N: Tensor, generator: torch.Generator, *, dropout: float) -> Tensor:
        """One sentence per image, row_N: a name of its concept in a template of its style; some get the empty text."""
        name_N = self._vocabulary.draw_names(generator)[concept_N]
        template_N = (torch.rand(len(concept_N), generator=generator) * self._count_S[style_N]).long()
        row_N = self._first_SW[style_N, name_N] + template_N
        dropped_N = torch.rand(len(concept_N), generator=generator) < dropout
        return torch.where(dropped_N, torch.zeros_like(row_N), row_N)
