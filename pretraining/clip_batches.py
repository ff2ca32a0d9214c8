"""Batches of the miniature CLIP's pre-training: who is drawn, how it is augmented, and the texts of the step.

A batch is a function of (seed, rank, step) alone, so a resumed run sees exactly what an undisturbed one would.

Shapes: ``N`` images, ``C`` concepts, ``W`` names, ``T`` templates, ``L`` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from pretraining import augment
from pretraining.clip_model import CONTEXT_LENGTH, IMAGE_PX, MEAN, STD
from pretraining.clip_vocabulary import TEMPLATES, Vocabulary
from pretraining.pretraining_data import (
    AERIAL_PX,
    PHOTO_PX,
    Bank,
    concept_ids,
    concepts_of,
    digit_bank,
    digit_concepts,
    read_bank,
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's tensors, in the order of `PretrainingTask.forward`."""

    images_NCHW: Tensor
    concept_N: Tensor
    class_tokens_KL: Tensor
    wrong_KK: Tensor
    caption_tokens_JL: Tensor


@dataclass(frozen=True, kw_only=True)
class PretrainingImages:
    """Every image of the job in memory, with the vocabulary that describes it."""

    photos: Bank
    aerial: Bank
    captioned: Bank
    digits_F10HW: npt.NDArray[np.uint8]
    vocabulary: Vocabulary

    @classmethod
    def read(cls, data: Path, cache: Path) -> PretrainingImages:
        """Reads the ``pretrain`` folder of the data and renders the digits, both by way of ``cache``."""
        photos = read_bank(data / "pretrain" / "photos.parquet", size_px=PHOTO_PX, cache=cache)
        aerial = read_bank(data / "pretrain" / "aerial.parquet", size_px=AERIAL_PX, cache=cache)
        captioned = read_bank(data / "pretrain" / "flickr8k.parquet", size_px=PHOTO_PX, cache=cache)
        concepts = concepts_of(photos, "photos") + concepts_of(aerial, "aerial") + digit_concepts()
        return cls(
            photos=photos,
            aerial=aerial,
            captioned=captioned,
            digits_F10HW=digit_bank(held_out=False, cache=cache),
            vocabulary=Vocabulary(concepts),
        )


def tokenise(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Pads to the context length and cuts longer texts, keeping their end-of-text token."""
    rows = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, encoding in zip(rows, tokenizer.encode_batch(texts), strict=True):
        ids = torch.tensor(encoding.ids[:CONTEXT_LENGTH])
        ids[-1] = encoding.ids[-1]
        row[: len(ids)] = ids
    return rows


def crop(tokens_KL: Tensor) -> Tensor:
    """Drops the columns that are padding in every row."""
    return tokens_KL[:, : int((tokens_KL != 0).sum(1).max())]


def step_seed(seed: int, rank: int, step: int) -> int:
    """One seed per (job, worker, step); tuples of integers hash alike in every process."""
    return hash((seed, rank, step)) % 2**63


class BatchMaker:
    """Draws, augments and pairs images with texts.

    Attributes:
        images: The data.
        counts: How many photos, aerial views, digits and captioned images a batch holds.
    """

    def __init__(
        self,
        images: PretrainingImages,
        tokenizer: Tokenizer,
        *,
        counts: Mapping[str, int],
        source_weights: Mapping[str, float],
        photo_classes: int,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.images = images
        self.photo_classes = photo_classes
        self.counts = dict(counts)
        self._seed, self._rank = seed, rank
        vocabulary = images.vocabulary
        self._photo_concepts = torch.from_numpy(concept_ids(images.photos, "photos", vocabulary))
        self._aerial_concepts = torch.from_numpy(concept_ids(images.aerial, "aerial", vocabulary))
        self._all_aerial = torch.tensor(sorted(set(self._aerial_concepts.tolist())))
        self._digit_concepts = torch.tensor([vocabulary.index["digits", c.label] for c in digit_concepts()])
        self._photo_weights = self.weigh_photos(images.photos, source_weights)
        self._aerial_weights = self.balance_classes(images.aerial, self._aerial_concepts)
        self._caption_pool = torch.from_numpy(np.flatnonzero(~images.captioned.held_out_N))
        self._tokens_PL, self._token_at = self._tokenise_classes(tokenizer)
        captions = images.captioned.captions
        self._captions_per_image = min(len(of_one) for of_one in captions)
        flat = tokenise(tokenizer, [text for of_one in captions for text in of_one[: self._captions_per_image]])
        self._caption_tokens = flat.view(len(captions), self._captions_per_image, -1)
        self._mean_C11 = torch.tensor(MEAN).view(3, 1, 1)
        self._std_C11 = torch.tensor(STD).view(3, 1, 1)

    @staticmethod
    def weigh_photos(photos: Bank, source_weights: Mapping[str, float]) -> Tensor:
        """Weights that give each collection its share and never draw what is held out."""
        sources = np.array(photos.sources)
        weights_N = np.zeros(len(sources))
        for source in np.unique(sources):
            chosen = (sources == source) & ~photos.held_out_N
            weights_N[chosen] = source_weights.get(str(source), 0.0) / max(1, chosen.sum())
        return torch.from_numpy(weights_N)

    @staticmethod
    def balance_classes(bank: Bank, concept_N: Tensor) -> Tensor:
        """Weights that draw every class equally often: some are in one collection only, some in two."""
        kept_N = torch.from_numpy(~bank.held_out_N)
        counts_C = torch.bincount(concept_N[kept_N], minlength=int(concept_N.max()) + 1)
        return kept_N / counts_C[concept_N].clamp(min=1)

    def _tokenise_classes(self, tokenizer: Tokenizer) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
        """Tokens of all (name, template) pairs of each domain, so that a step only looks rows up."""
        vocabulary = self.images.vocabulary
        rows: list[str] = []
        starts: dict[tuple[str, int], Tensor] = {}
        for domain, templates in TEMPLATES.items():
            for at in vocabulary.names_of(domain):
                first = len(rows)
                rows.extend(template.format(vocabulary.names[at]) for template in templates)
                starts[domain, at] = torch.arange(first, len(rows))
        return tokenise(tokenizer, rows), starts

    def _class_tokens(self, chosen_K: Tensor, name_C: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(len(chosen_K), generator=generator)
        picked = []
        for concept, draw in zip(chosen_K.tolist(), draws.tolist(), strict=True):
            rows = self._token_at[self.images.vocabulary.concepts[concept].domain, int(name_C[concept])]
            picked.append(rows[int(draw * len(rows))])
        return crop(self._tokens_PL[torch.stack(picked)])

    def _choose_concepts(self, generator: torch.Generator) -> Tensor:
        """The step's concepts: some photographed classes, all aerial ones, all digits."""
        photo_C = torch.zeros(len(self.images.vocabulary.concepts), dtype=self._photo_weights.dtype)
        photo_C.index_add_(0, self._photo_concepts, self._photo_weights)
        count = min(self.photo_classes, int((photo_C > 0).sum()))
        some = torch.multinomial(photo_C, count, generator=generator)
        return torch.cat([some, self._all_aerial, self._digit_concepts]).sort().values

    def _photos(self, chosen_K: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weights_N = self._photo_weights * torch.isin(self._photo_concepts, chosen_K)
        index_N = torch.multinomial(weights_N, self.counts["photos"], replacement=True, generator=generator)
        images = augment.augment_photos(self._pixels(self.images.photos, index_N), generator, out_px=IMAGE_PX)
        return images, self._photo_concepts[index_N]

    def _aerial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index_N = torch.multinomial(self._aerial_weights, self.counts["aerial"], replacement=True, generator=generator)
        images = augment.augment_aerial(self._pixels(self.images.aerial, index_N), generator, out_px=IMAGE_PX)
        return images, self._aerial_concepts[index_N]

    def _digits(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        bank, count = self.images.digits_F10HW, self.counts["digits"]
        face_N = torch.randint(len(bank), (count,), generator=generator)
        digit_N = torch.randint(10, (count,), generator=generator)
        pixels = torch.from_numpy(bank[face_N.numpy(), digit_N.numpy()]).unsqueeze(1).float() / 255
        return augment.augment_digits(pixels, generator, out_px=IMAGE_PX), self._digit_concepts[digit_N]

    def _captioned(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count = self.counts["captions"]
        index_N = self._caption_pool[torch.randperm(len(self._caption_pool), generator=generator)[:count]]
        which_N = torch.randint(self._captions_per_image, (count,), generator=generator)
        images = augment.augment_photos(self._pixels(self.images.captioned, index_N), generator, out_px=IMAGE_PX)
        return images, crop(self._caption_tokens[index_N, which_N])

    @staticmethod
    def _pixels(bank: Bank, index_N: Tensor) -> Tensor:
        pixels_NHWC = torch.from_numpy(bank.images_NHWC[index_N.numpy()])
        return pixels_NHWC.permute(0, 3, 1, 2).float() / 255

    def make(self, step: int) -> Batch:
        """The batch of ``step`` for this rank."""
        generator = torch.Generator().manual_seed(step_seed(self._seed, self._rank, step))
        chosen_K = self._choose_concepts(generator)
        photos, photo_concepts = self._photos(chosen_K, generator)
        aerial, aerial_concepts = self._aerial(generator)
        digits, digit_concept = self._digits(generator)
        captioned, caption_tokens = self._captioned(generator)
        name_C = self.images.vocabulary.draw_names(generator)
        images = torch.cat([photos, aerial, digits, captioned])
        concept_N = torch.cat([photo_concepts, aerial_concepts, digit_concept])
        return Batch(
            images_NCHW=(images - self._mean_C11) / self._std_C11,
            concept_N=torch.searchsorted(chosen_K, concept_N),
            class_tokens_KL=self._class_tokens(chosen_K, name_C, generator),
            wrong_KK=self.images.vocabulary.allowed_negatives(name_C)[chosen_K][:, chosen_K],
            caption_tokens_JL=caption_tokens,
        )
