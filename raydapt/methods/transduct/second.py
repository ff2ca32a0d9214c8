"""A second encoder's share in transduction: its own mixture, which no text anchors, and its own neighbours.

The classes of a vision-only encoder have no texts. Their means come from the soft labels alone and are drawn towards
the mean of all images, so that a class with few images says nothing instead of something wrong.

Legend: N images, B block of images, C classes, E width of the second feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydapt.artefacts.rows import Features, blocks
from raydapt.methods.transduct import rules
from raydapt.methods.transduct.neighbours import Neighbours, nearest
from raydapt.methods.transduct.rules import Anchors, Head, Statistics
from raydapt.methods.transduct.settings import TransductSettings

_TRUST_NEIGHBOURS = 10
"""Whose labels tell how far the encoder is trusted, where `neighbours` is 0."""


@dataclass(frozen=True)
class SecondView:
    """Features of the same images by another encoder."""

    feature_NE: Features
    """L2-normalised; zeros for an image without one."""
    there_N1: Tensor
    """1 for an image with a feature, else 0: it then has no say."""
    square_E: Tensor
    """sum_i g_ie^2."""
    neighbours: Neighbours
    """By this encoder; an image without a feature has none."""
    settings: TransductSettings

    @classmethod
    def of(cls, feature_NE: Features, settings: TransductSettings, device: torch.device) -> SecondView | None:
        """Finds the neighbours; None where no image has a feature."""
        there_N1 = torch.empty(len(feature_NE), 1, device=device)
        for rows in blocks(len(feature_NE)):
            there_N1[rows] = feature_NE[rows].any(dim=1, keepdim=True).to(there_N1)
        if not bool(there_N1.any()):
            return None
        neighbours = nearest(feature_NE, settings.neighbours or _TRUST_NEIGHBOURS, device)
        return cls(feature_NE, there_N1, rules.square_sums(feature_NE), neighbours, settings)

    def head(self, statistics: Statistics) -> Head:
        """The class likelihoods of this encoder's features, in scores that are linear in a feature.

        nu_c = (sum_i z_ic g_i + alpha m) / (n_c + alpha) with m the mean of all g, one diagonal covariance around them
        drawn towards that around m, and the temper of `raydapt.methods.transduct.rules.tempered`.

        Args:
            statistics: Of the features and soft labels of the images that have a feature.
        """
        settings, images = self.settings, statistics.n_images
        mean_E = statistics.sum_CD.sum(dim=0) / images
        variance_E = (self.square_E / images - mean_E**2).clamp_min(1e-9)
        anchors = Anchors(mean_E.expand_as(statistics.sum_CD), variance_E)
        head = rules.anchored_head(statistics, anchors, self.square_E, settings.second_anchor_images)
        return rules.tempered(head, settings.second_temper)

    def scores(self, head: Head, rows: slice) -> Tensor:
        """What a block of images gets of `head`, [B, C]; 0 without a feature."""
        score_BC = torch.addmm(head.bias_C, self.feature_NE[rows], head.weight_CD.T)
        return score_BC * self.there_N1[rows]
