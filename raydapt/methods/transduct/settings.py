"""The settings of transduction."""

from dataclasses import dataclass
from typing import Literal

from raydapt.setting_types import STRICT, Count, NonNegative, Positive, PositiveInt

Rule = Literal["tempered", "transclip", "stata"]


@dataclass(frozen=True, kw_only=True)
class TransductSettings:
    """Transduction: a mixture with text prior, neighbours and class prior over all unlabelled images at once.

    The defaults were chosen once, on the development sets and their shifted variants, and hold for every set (see
    docs/notes-transduct.md). Everything is relative to the features' own spread, so that no setting depends on a model.
    """

    __pydantic_config__ = STRICT

    rule: Rule = "tempered"
    """``tempered``: ours, built for sets with unequal, absent and foreign classes. ``transclip`` (Zanella et al.,
    NeurIPS 2024) and ``stata`` (Zanella et al., CVPR 2025, with one covariance for all classes): the published ones,
    written from their formulas, for comparison; they read only `text_strength`, `neighbours` (published: 3),
    `neighbour_strength` (published: 1), `anchor_images` (StatA's alpha) and the rounds."""
    temper: Positive = 10.0
    """Beta of the first stage: weight of the cosine to a class mean, in units of the mean distance of an image to its
    class mean. It stands for the number of dimensions that tell images apart; 10 is small, which is the tempering."""
    temper_final: Positive = 20.0
    """Beta of the second stage, when it is settled which classes there are."""
    rounds: PositiveInt = 6
    """Rounds of the first stage, whose class prior follows the shares found so far."""
    rounds_final: Count = 3
    """Rounds of the second stage, whose class prior is fixed; 0 leaves it out. Few, because a mixture drifts from its
    text prior to the strongest clusters, whatever they are."""
    text_strength: NonNegative = 1.0
    """Weight lambda of the zero-shot log probabilities (TransCLIP's: 1)."""
    neighbours: Count = 10
    """Nearest images whose labels count; 0 leaves them out."""
    neighbour_strength: NonNegative = 3.0
    """Weight of the neighbours' mean label."""
    anchor_images: NonNegative = 2.0
    """Kappa: how many images the text anchor of a class weighs in its mean (StatA's anchors, ours for unit means)."""
    anchor_reach: NonNegative = 0.5
    """How far from the images' mean an anchor lies, in units of the text's offset from the mean text."""
    prior_images: Positive = 1.0
    """Images that each class has in advance when shares are counted (Laplace's rule; Dirichlet prior)."""
    presence: NonNegative = 1.0
    """Tau of the second stage's prior n / (n + tau N / C'), C' the effective number of classes found: above it a class
    counts as there, and all that are there count nearly the same."""
    kept_labels: PositiveInt = 32
    """Largest soft labels of an image that are kept between rounds (8 bytes each); all of them up to so many classes."""
