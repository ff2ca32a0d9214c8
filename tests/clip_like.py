"""Random feature sets with the geometry of a CLIP, to choose settings on where no real features may be used.

The published findings that they follow: images and texts lie in two narrow cones that are far apart (Liang et al.,
NeurIPS 2022, "Mind the Gap": the mean cosine of two images is about 0.5, of an image and a text 0.2 to 0.3), few
directions carry most of the variance, classes come in groups of similar ones, and a class's text says only a small part
of where its images lie, for some classes less than for others.

    x = u_image + between (sqrt(h) G_group + sqrt(1 - h) M_class + mode) + within width_class e,   f = x / |x|
    y = u_text + spread (rho_c (class part of x) + sqrt(1 - rho_c^2) noise),                       t = y / |y|

G, M, modes, e and the noise are Gaussian with variances that fall as k^-decay. `rho` is found by bisection so that the
zero-shot accuracy of softmax(100 t . f) is the one asked for.

Legend: N images, C classes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class ClipLike:
    """What is drawn."""

    n_classes: int
    per_class: int
    zero_shot: float
    """Accuracy of the texts, 0 to 1."""
    between: float = 0.5
    """Length of the class part of an image feature; the cone has length 1."""
    within: float = 0.75
    """Length of the rest."""
    group_share: float = 0.4
    per_group: int = 4
    modes: int = 2
    """Looks of a class."""
    decay: float = 0.7
    spread: float = 0.42
    width: int = 512
    scale: float = 100.0


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Unit features, their classes, unit class embeddings and the logit scale."""

    feature_ND: Tensor
    label_N: Tensor
    text_CD: Tensor
    scale: float


def clip_like(kind: ClipLike, seed: int) -> FeatureSet:
    """Draws a set."""
    rng = np.random.default_rng(seed)
    deviation_D = np.arange(1, kind.width + 1) ** (-kind.decay / 2)
    deviation_D /= np.sqrt((deviation_D**2).sum())

    cones_2D = rng.normal(size=(2, kind.width)) / np.sqrt(kind.width)
    cones_2D[1] += 0.2 * cones_2D[0]
    basis_D = rng.permutation(kind.width)

    def drawn(count: int) -> np.ndarray:
        return (rng.normal(size=(count, kind.width)) * deviation_D)[:, basis_D]

    group_C = np.arange(kind.n_classes) // kind.per_group
    h = kind.group_share
    class_CD = np.sqrt(h) * drawn(group_C.max() + 1)[group_C] + np.sqrt(1 - h) * drawn(kind.n_classes)
    mode_CMD = 0.5 * drawn(kind.n_classes * kind.modes).reshape(kind.n_classes, kind.modes, -1)
    label_N = np.repeat(np.arange(kind.n_classes), kind.per_class)
    width_C = np.exp(0.15 * rng.normal(size=kind.n_classes))
    place_ND = class_CD[label_N] + mode_CMD[label_N, rng.integers(kind.modes, size=len(label_N))]
    image_ND = cones_2D[0] + kind.between * place_ND + kind.within * width_C[label_N, None] * drawn(len(label_N))
    feature_ND = F.normalize(torch.from_numpy(image_ND).float(), dim=1)
    labels_N, noise_CD = torch.from_numpy(label_N), drawn(kind.n_classes)
    clearness_C = np.exp(0.4 * rng.normal(size=kind.n_classes))

    def texts(rho: float) -> Tensor:
        rho_C1 = np.minimum(rho * clearness_C, 0.95)[:, None]
        text_CD = cones_2D[1] + kind.spread * (rho_C1 * class_CD + np.sqrt(1 - rho_C1**2) * noise_CD)
        return F.normalize(torch.from_numpy(text_CD).float(), dim=1)

    low, high = 0.0, 0.95
    for _ in range(14):
        middle = (low + high) / 2
        right = float(((feature_ND @ texts(middle).T).argmax(dim=1) == labels_N).double().mean())
        low, high = (middle, high) if right < kind.zero_shot else (low, middle)
    return FeatureSet(feature_ND=feature_ND, label_N=labels_N, text_CD=texts(high), scale=kind.scale)


def second_view(
    label_N: Tensor, *, between: float, seed: int, modes: int = 2, decay: float = 0.7, width: int = 384
) -> Tensor:
    """Unit features [N, E] of the same images by an encoder without texts, drawn independently of the first.

    g = u + between (M_class + mode) + e, normalised: the same shape as an image feature of `clip_like` with other
    classes alike and other images hard. Nearest neighbours share their class the more often, the larger `between`.
    """
    rng = np.random.default_rng([seed, 7])
    deviation_E = np.arange(1, width + 1) ** (-decay / 2)
    deviation_E /= np.sqrt((deviation_E**2).sum())

    def drawn(count: int) -> np.ndarray:
        return rng.normal(size=(count, width)) * deviation_E

    classes = label_N.numpy()
    n_classes = int(classes.max()) + 1
    mode_CME = 0.5 * drawn(n_classes * modes).reshape(n_classes, modes, -1)
    place_NE = drawn(n_classes)[classes] + mode_CME[classes, rng.integers(modes, size=len(classes))]
    image_NE = rng.normal(size=width) / np.sqrt(width) + between * place_NE + 0.75 * drawn(len(classes))
    return F.normalize(torch.from_numpy(image_NE).float(), dim=1)


SETS: dict[str, ClipLike] = {
    "18 classes, 60 %": ClipLike(n_classes=18, per_class=60, zero_shot=0.60),
    "18 classes, 93 %": ClipLike(n_classes=18, per_class=60, zero_shot=0.93, between=0.6),
    "20 classes, 85 %": ClipLike(n_classes=20, per_class=50, zero_shot=0.85),
    "37 classes, 88 %": ClipLike(n_classes=37, per_class=40, zero_shot=0.88, between=0.45, group_share=0.5),
    "47 classes, 45 %": ClipLike(n_classes=47, per_class=30, zero_shot=0.45, between=0.4),
    "50 classes, 75 %": ClipLike(n_classes=50, per_class=30, zero_shot=0.75, between=0.35, modes=3),
    "100 classes, 60 %": ClipLike(n_classes=100, per_class=20, zero_shot=0.60),
    "100 classes, 92 %": ClipLike(n_classes=100, per_class=20, zero_shot=0.92, between=0.55),
    "200 classes, 50 %": ClipLike(n_classes=200, per_class=10, zero_shot=0.50, between=0.4, group_share=0.5),
}
"""Zero-shot 45 to 95 %, 18 to 200 classes: the development sets of transduction beside the miniature CLIP's."""
