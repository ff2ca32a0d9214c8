"""The settings of transduction."""

from dataclasses import dataclass, field
from typing import Literal

from raydapt.settings.types import STRICT, Count, NonNegative, Positive, PositiveInt, Share

Rule = Literal["tempered", "spherical", "transclip", "stata"]


@dataclass(frozen=True, kw_only=True)
class TransductSettings:
    """Transduction: a mixture with text prior, neighbours and class prior over all unlabelled images at once.

    The defaults were chosen once, on development sets and their shifted variants, and hold for every set (see
    docs/results/transduct.md). Everything is relative to the features' own spread: no setting depends on a model.
    """

    __pydantic_config__ = STRICT

    over: list[str] = field(default_factory=list)
    """Folders of finished runs of the same classes, without labels: the mean of their answers starts the labels and
    stands for the texts among the images that are fitted. New images are still answered by texts and mixture."""
    rule: Rule = "tempered"
    """``tempered``: anchored Gaussians with a diagonal covariance and a temperature, built for sets with unequal,
    absent and foreign classes (ours, after StatA). ``spherical``: cosines to anchored means instead, more careful still
    (`temper=10` there). ``transclip`` (Zanella et al., NeurIPS 2024) and ``stata`` (Zanella et al., CVPR 2025, with one
    covariance for all classes): the published ones, written from their formulas, for comparison; `published` sets
    what they were published with."""
    temper: Positive = 15.0
    """Beta: the mixture speaks as if 2 beta dimensions told images apart; read by ``tempered`` and ``spherical``."""
    rounds: PositiveInt = 5
    """Rounds of class means and labels. Few, because a mixture drifts from its text prior to the strongest clusters,
    whatever they are."""
    text_strength: NonNegative = 1.0
    """Weight lambda of the zero-shot log probabilities (TransCLIP's: 1)."""
    neighbours: Count = 10
    """Nearest images whose labels count; 0 leaves them out."""
    neighbour_strength: NonNegative = 3.0
    """Weight of the neighbours' mean label; of their sum in ``transclip`` and ``stata``."""
    anchor_images: NonNegative = 2.0
    """How many images the text anchor of a class weighs in its mean (StatA's alpha: 1)."""
    anchor_reach: NonNegative = 0.5
    """How far from the images' mean an anchor lies, in units of the text's offset from the mean text."""
    anchor_gap: Share = 0.3
    """Share of the way from the images' cone to the texts' at which an anchor lies; the further, the sooner a class
    with few images fades."""
    prior_images: Positive = 0.3
    """Images that each class has in advance when shares are counted (a Dirichlet prior)."""
    caution: NonNegative = 6.0
    """Images a class at which half of what was learned counts for new images: with 2 or 3 images a class some classes
    were hardly seen, and a shift towards the others must not be carried over."""
    second_temper: NonNegative = 15.0
    """Beta of the mixture of a second encoder's features (``model.second``)."""
    second_anchor_images: NonNegative = 2.0
    """How many images the mean of all images weighs in the mean of a class, in the second encoder's features."""
    second_neighbour_strength: NonNegative = 3.0
    """Weight of the mean label of the neighbours by the second encoder."""
    kept_labels: PositiveInt = 32
    """Largest soft labels of an image that are kept between rounds, 8 bytes each; with fewer classes all of them."""


def published(rule: Literal["transclip", "stata"]) -> TransductSettings:
    """A published rule with its published settings: 3 neighbours, weight 1, 10 rounds of 5 updates of the labels."""
    return TransductSettings(
        rule=rule, neighbours=3, neighbour_strength=1.0, rounds=10, anchor_images=1.0, kept_labels=1024
    )
