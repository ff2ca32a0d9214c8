"""The words of the miniature CLIP: which names an image may be called by, and in which sentences.

Every training image belongs to a *concept*: one class of one domain (photos, aerial views, digits). A concept has a
label and further names; other concepts may share some of them ("forest" is a photo and an aerial view, every
"chihuahua" is a "dog"). The masks of this file say which texts must not count as wrong for an image.

Shapes: ``C`` concepts, ``W`` names, ``T`` templates, ``L`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Domain = Literal["photos", "aerial", "digits"]

PHOTO_TEMPLATES = (
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of {}.",
    "a cartoon of a {}.",
    "a cartoon of a {}.",
    "a drawing of a {}.",
    "a sketch of a {}.",
    "a painting of a {}.",
    "art of the {}.",
    "a blurry photo of a {}.",
    "a photo of a small {}.",
    "itap of a {}.",
    "an image of a {}.",
    "a {}.",
    "{}",
)
AERIAL_TEMPLATES = (
    "a satellite photo of {}.",
    "a satellite photo of {}.",
    "a centered satellite photo of {}.",
    "a centered satellite photo of a {}.",
    "a centered satellite photo of the {}.",
    "a satellite image of {}.",
    "satellite imagery of {}.",
    "an aerial photo of {}.",
    "an aerial view of {}.",
    "a photo of a {}.",
    "a photo of {}.",
    "{}",
)
DIGIT_TEMPLATES = (
    "a photo of the digit {}.",
    "a photo of the digit {}.",
    'a photo of the number: "{}".',
    "a photo of a handwritten digit {}.",
    "a handwritten digit {}.",
    "an image of the number {}.",
    "the digit {}.",
    "a photo of a {}.",
    "{}",
)
TEMPLATES: Mapping[Domain, tuple[str, ...]] = {
    "photos": PHOTO_TEMPLATES,
    "aerial": AERIAL_TEMPLATES,
    "digits": DIGIT_TEMPLATES,
}
DIGIT_NAMES = (
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
)

# The class lists name species and models only; captions and other class lists use the everyday word.
BROADER_WORDS: Mapping[str, tuple[str, ...]] = {
    "dog": ("Chihuahua", "Yorkshire terrier", "golden retriever", "Labrador retriever", "German shepherd",
            "standard poodle", "dalmatian"),
    "cat": ("tabby", "Persian cat", "Egyptian cat", "wild cat"),
    "elephant": ("African elephant",),
    "bear": ("brown bear",),
    "camel": ("Arabian camel",),
    "lobster": ("American lobster", "spiny lobster"),
    "bird": ("goose", "black stork", "king penguin", "albatross", "flamingo", "emu", "ibis", "rooster", "pigeon"),
    "butterfly": ("monarch", "sulphur butterfly"),
    "spider": ("black widow", "tarantula"),
    "snake": ("boa constrictor",),
    "frog": ("bullfrog", "tailed frog"),
    "crocodile": ("crocodile head",),
    "fish": ("goldfish", "aquarium fish", "flatfish", "trout", "bass", "shark"),
    "monkey": ("baboon",),
    "guitar": ("electric guitar",),
    "piano": ("grand piano",),
    "car": ("sports car", "convertible", "limousine", "beach wagon", "car side"),
    "bus": ("school bus", "trolleybus"),
    "van": ("moving van", "police van"),
    "train": ("bullet train",),
    "boat": ("gondola", "lifeboat", "ferry", "schooner", "ketch"),
    "bridge": ("steel arch bridge", "suspension bridge", "viaduct"),
    "tree": ("maple tree", "oak tree", "palm tree", "pine tree", "willow tree", "bonsai", "joshua tree"),
    "flower": ("orchid", "poppy", "rose", "sunflower", "tulip", "lotus", "water lilly"),
    "chair": ("rocking chair", "windsor chair"),
    "clock": ("stopwatch",),
    "ball": ("basketball", "rugby ball", "volleyball", "soccer ball"),
    "person": ("man", "woman", "boy", "girl", "baby", "faces"),
    "face": ("faces",),
    "airplane": ("airplanes",),
    "motorbike": ("motorbikes", "motorcycle"),
    "motorcycle": ("motorbikes",),
    "leopard": ("leopards",),
    "tower": ("water tower", "minaret"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One class of one domain: its label first, then every further name (all lower case)."""

    domain: Domain
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The first name."""
        return self.names[0]


def broaden(label: str, names: Sequence[str]) -> tuple[str, ...]:
    """All names of a photographed class: its label, its synonyms and the everyday words above it, lower-cased."""
    broader = [word for word, members in BROADER_WORDS.items() if label in members]
    return tuple(dict.fromkeys(name.lower() for name in (label, *names, *broader)))


class Vocabulary:
    """Concepts, their tokenised texts, and which text is no mistake for which concept.

    Attributes:
        concepts: The C concepts, in a fixed order.
        names: The W distinct names.
        owns_CW: Whether concept c may be called by name w.
        related_CC: Whether two concepts overlap as a whole (the label of one is a name of the other).
    """

    def __init__(self, concepts: Iterable[Concept]) -> None:
        self.concepts = tuple(sorted(set(concepts), key=lambda concept: (concept.domain, concept.names)))
        self.names = tuple(sorted({name for concept in self.concepts for name in concept.names}))
        self.index = {(concept.domain, concept.label): at for at, concept in enumerate(self.concepts)}
        name_at = {name: at for at, name in enumerate(self.names)}
        count = len(self.concepts)
        self.owns_CW = torch.zeros(count, len(self.names), dtype=torch.bool)
        for at, concept in enumerate(self.concepts):
            self.owns_CW[at, [name_at[name] for name in concept.names]] = True
        label_W = torch.tensor([name_at[concept.label] for concept in self.concepts])
        called_CC = self.owns_CW[:, label_W]  # [i, j]: the label of j is a name of i
        self.related_CC = called_CC | called_CC.T
        self.most_names = max(len(concept.names) for concept in self.concepts)
        self._names_CS = torch.tensor(
            [[name_at[n] for n in (c.names * self.most_names)[: self.most_names]] for c in self.concepts]
        )
        self._name_counts_C = torch.tensor([len(concept.names) for concept in self.concepts])

    def names_of(self, domain: Domain) -> list[int]:
        """Indices of the names that any concept of ``domain`` has."""
        members = [at for at, concept in enumerate(self.concepts) if concept.domain == domain]
        return [int(at) for at in self.owns_CW[members].any(0).nonzero().squeeze(1)]

    def draw_names(self, generator: torch.Generator, *, label_share: float = 0.5) -> Tensor:
        """Picks one name per concept: its label with probability ``label_share``, else any of its names.

        Returns:
            name_C: Indices into ``names``.
        """
        count = len(self.concepts)
        draw_C = torch.rand(count, generator=generator)
        any_C = (torch.rand(count, generator=generator) * self._name_counts_C).long()
        slot_C = torch.where(draw_C < label_share, torch.zeros_like(any_C), any_C)
        return self._names_CS[torch.arange(count), slot_C]

    def allowed_negatives(self, name_C: Tensor) -> Tensor:
        """Which of the drawn texts are truly wrong for which concept.

        Returns:
            wrong_CC: True at [i, j] when the text drawn for concept j is a mistake for an image of concept i. The
            diagonal is False: a concept's own text is its positive.
        """
        return ~(self.owns_CW[:, name_C] | self.related_CC)


def all_texts(vocabulary: Vocabulary) -> list[str]:
    """Every (name, template) sentence that training can show: what a tokenizer should know."""
    return sorted(
        {
            template.format(name)
            for concept in vocabulary.concepts
            for template in TEMPLATES[concept.domain]
            for name in concept.names
        }
    )
