"""The rules of transduction as pure functions: anchors, class means, class priors, and the classifier they make.

All rules end in scores that are linear in a feature: s t . f + w_c . f + b_c. With one covariance for all classes
the part of a Gaussian that is quadratic in f is the same for every class and falls out of the softmax; the same holds
for the cosine of unit vectors. A round is then two products of matrices, and a new image costs one.

Legend: N images, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.artefacts.rows import Features, blocks

_BLOCK_ELEMENTS = 2**23
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Statistics:
    """What a round needs to know of features f and soft labels z."""

    sum_CD: Tensor
    """sum_i z_ic f_i."""
    mass_C: Tensor
    """n_c = sum_i z_ic."""

    @property
    def n_images(self) -> float:
        """N, since labels sum to 1."""
        return float(self.mass_C.sum())


@dataclass(frozen=True)
class Head:
    """Scores w_c . f + b_c, which are added to the zero-shot logits."""

    weight_CD: Tensor
    bias_C: Tensor


@dataclass(frozen=True)
class Anchors:
    """Gaussians that the classes are drawn towards."""

    mean_CD: Tensor
    variance_D: Tensor


def mean_of(feature_ND: Features) -> Tensor:
    """The mean feature [D], block by block."""
    return _sums(feature_ND, lambda block_BD: block_BD) / len(feature_ND)


def square_sums(feature_ND: Features) -> Tensor:
    """sum_i f_i^2 of every dimension [D], block by block: squares of all features would take as much as they do."""
    return _sums(feature_ND, Tensor.square)


def _sums(feature_ND: Features, of: Callable[[Tensor], Tensor]) -> Tensor:
    parts = list(blocks(len(feature_ND), max(1, _BLOCK_ELEMENTS // feature_ND.shape[1])))
    sums_PD: Tensor | None = None
    for number, rows in enumerate(parts):
        sum_D = of(feature_ND[rows]).sum(dim=0)
        sums_PD = sum_D.new_empty(len(parts), len(sum_D)) if sums_PD is None else sums_PD
        sums_PD[number] = sum_D
    assert sums_PD is not None
    return sums_PD.sum(dim=0)


def text_anchors(mean_D: Tensor, text_CD: Tensor, *, reach: float, gap: float) -> Tensor:
    """a_c = (1 - gap) norm(mean f + reach (t_c - mean t)) + gap t_c, [C, D].

    Texts and images lie in two cones (Liang et al., NeurIPS 2022). In the images' cone (gap 0) an anchor says where the
    images of a class are expected. In the texts' (gap 1, StatA's) it is far from every image: a class that finds none
    stays far away and gets none, but so does a class with few.

    Args:
        mean_D: Mean of the image features, not normalised.
        text_CD: Class embeddings.
        reach: Length of the step from the images' mean, in units of the text's own offset.
        gap: Share of the way from the images' cone to the texts'.
    """
    in_cone_CD = F.normalize(mean_D + reach * (text_CD - text_CD.mean(dim=0)), dim=1)
    return (1 - gap) * in_cone_CD + gap * text_CD


def unit_means(statistics: Statistics, anchor_CD: Tensor, anchor_images: float) -> Tensor:
    """mu_c = norm(sum_i z_ic f_i + kappa a_c), [C, D]: spherical k-means' means with an anchor in them."""
    return F.normalize(statistics.sum_CD + anchor_images * anchor_CD, dim=1)


def spread(statistics: Statistics, mean_CD: Tensor) -> float:
    """R = sum_ic z_ic (1 - cos(f_i, mu_c)) / N, the mean distance of an image to its class mean; above 0.

    For unit f and mu the sum of cosines is sum_c (sum_i z_ic f_i) . mu_c.
    """
    cosine = float((statistics.sum_CD * mean_CD).sum()) / statistics.n_images
    return max(1e-6, 1 - cosine)


def spherical_head(statistics: Statistics, anchor_CD: Tensor, *, temper: float, anchor_images: float) -> Head:
    """Log p_ic = temper cos(f_i, mu_c) / r: a von Mises-Fisher mixture with a small concentration.

    Dividing by r makes it free of how narrow the cone of the features is.
    """
    mean_CD = unit_means(statistics, anchor_CD, anchor_images)
    return Head(temper / spread(statistics, mean_CD) * mean_CD, statistics.mass_C.new_zeros(len(mean_CD)))


def shares_prior(statistics: Statistics, prior_images: float) -> Tensor:
    """Log pi_c, pi_c = (n_c + a) / (N + a C): the shares found, each class with `prior_images` in advance."""
    mass_C = statistics.mass_C + prior_images
    return (mass_C / mass_C.sum()).log()


def gaussian_head(mean_CD: Tensor, variance_D: Tensor) -> Head:
    """Log density of Gaussians with one diagonal covariance, less what is the same for every class.

    -1/2 sum_d (f_d - mu_cd)^2 / v_d = f . (mu_c / v) - 1/2 sum_d mu_cd^2 / v_d + const (TransCLIP, equation 4).
    """
    weight_CD = mean_CD / variance_D
    return Head(weight_CD, -0.5 * (weight_CD * mean_CD).sum(dim=1))


def weighted_means(statistics: Statistics) -> Tensor:
    """mu_c = sum_i z_ic f_i / n_c (TransCLIP, equation 8)."""
    return statistics.sum_CD / statistics.mass_C[:, None].clamp_min(_TINY)


def shared_variance(statistics: Statistics, mean_CD: Tensor, square_D: Tensor) -> Tensor:
    """v_d = sum_ic z_ic (f_id - mu_cd)^2 / N (TransCLIP, equation 9), [D].

    Args:
        statistics: Of features and labels.
        mean_CD: Any means, not only the weighted ones.
        square_D: sum_i f_id^2.
    """
    within_D = square_D - 2 * (mean_CD * statistics.sum_CD).sum(dim=0)
    within_D = within_D + (statistics.mass_C[:, None] * mean_CD**2).sum(dim=0)
    return (within_D / statistics.n_images).clamp_min(1e-9)


def transclip_head(statistics: Statistics, square_D: Tensor) -> Head:
    """TransCLIP's class likelihood (Zanella et al., NeurIPS 2024, equations 4, 8 and 9)."""
    mean_CD = weighted_means(statistics)
    return gaussian_head(mean_CD, shared_variance(statistics, mean_CD, square_D))


def anchored_head(statistics: Statistics, anchors: Anchors, square_D: Tensor, alpha: float) -> Head:
    """StatA's anchored Gaussians (Zanella et al., CVPR 2025) with one covariance for all classes.

    The minimum over mu and v of the expected negative log likelihood plus alpha sum_c KL(N(a_c, v') || N(mu_c, v)):
    mu_c = (sum_i z_ic f_i + alpha a_c) / (n_c + alpha),
    v = (sum_ic z_ic (f_i - mu_c)^2 + alpha sum_c ((a_c - mu_c)^2 + v')) / (N + alpha C).
    The paper has a covariance of every class; with one, scores stay linear.

    Args:
        statistics: Of features and labels.
        anchors: a and v'; StatA's are the texts.
        square_D: sum_i f_id^2.
        alpha: How many images an anchor weighs.
    """
    n_classes = len(anchors.mean_CD)
    mean_CD = (statistics.sum_CD + alpha * anchors.mean_CD) / (statistics.mass_C + alpha)[:, None]
    within_D = statistics.n_images * shared_variance(statistics, mean_CD, square_D)
    anchored_D = ((anchors.mean_CD - mean_CD) ** 2).sum(dim=0) + n_classes * anchors.variance_D
    variance_D = (within_D + alpha * anchored_D) / (statistics.n_images + alpha * n_classes)
    return gaussian_head(mean_CD, variance_D)


def tempered(head: Head, temper: float) -> Head:
    """The head of Gaussians at 2 beta / D of its strength.

    An image's squared distance to its class mean is D standard deviations' squares on average, so that -log p is beta:
    the mixture speaks as if `2 beta` dimensions told images apart. The others are not independent evidence, and at full
    strength (TransCLIP, StatA) they outvote the texts wherever clusters are not classes.
    """
    factor = 2 * temper / head.weight_CD.shape[1]
    return Head(factor * head.weight_CD, factor * head.bias_C)
