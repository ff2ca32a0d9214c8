"""Images that belong to none of the named classes: an estimate of their share, and a probability for any image.

An image of a foreign class is near no text, and less near to the text of the class that it was given than the other
images are. Plain cosines hide that behind what all images and all texts have in common, so both means are taken out.

What a run keeps, `OpenSetRule`, is a function of one feature and the class embeddings: fitted on a sample, it answers
any image, block by block. The neighbours of `familiarity` have no part in it.

Legend: A all images, N images, S the sample, B a block, C classes, D width, K neighbours, 2 the two scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from raydapt.artefacts.rows import Features, blocks
from raydapt.methods.even_sample import even_sample
from raydapt.methods.transduct.neighbours import Neighbours
from raydapt.settings.groups import DataSettings

NONE = "none of these"
"""The answer for an image that is rejected."""
LEAST_SEPARATION = 3.5
"""Distance of the two groups in standard deviations at which a warning is given."""
MOST_SHARE = 0.5
"""A lower group larger than this is no reason for a warning: it is then the images of the unclear classes."""
CLEAR_SEPARATION = 5.0
"""From here on the groups are called clear. No run acts on it: see docs/open-set.md."""
LEAST_IMAGES = 50
"""Fewer images tell nothing."""
_SAMPLE = 20_000
"""Images that the groups are fitted on, evenly drawn."""
_BLOCK_ELEMENTS = 2**23


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Two groups of scores, of which the lower one holds the images of no named class."""

    share: float
    """Weight of the lower group."""
    separation: float
    """Distance of the groups' means in standard deviations of either."""
    bimodal: bool
    """Whether two groups explain the scores better than one (Bayesian information criterion)."""
    slope: float
    offset: float

    @property
    def suspected(self) -> bool:
        """Whether to warn."""
        return self.bimodal and self.separation >= LEAST_SEPARATION and self.share <= MOST_SHARE

    @property
    def clear(self) -> bool:
        """Whether the groups are so far apart that hardly an image is between them."""
        return self.suspected and self.separation >= CLEAR_SEPARATION

    def none_probability(self, score_N: Tensor) -> Tensor:
        """float32 [N]: sigmoid(offset - slope score), which falls with the score everywhere."""
        return (self.offset - self.slope * score_N.double()).sigmoid().float()

    def sentence(self) -> str | None:
        """A warning; None where there is no reason for one."""
        if not self.suspected:
            return None
        return (
            f"About {self.share:.0%} of the images seem to belong to none of the names: set data.reject=true to keep "
            "them out, or add the missing names."
        )


def familiarity(feature_ND: Tensor, text_CD: Tensor, class_N: Tensor, neighbours: Neighbours | None = None) -> Tensor:
    """How well an image fits the text of the class that it was given, float32 [N]; the higher the better.

    With l the class of image i, the sum of two scores, each with mean 0 and deviation 1 over the images:
    (f_i - mean f) . (t_l - mean t), which is the cosine less what every image has of this text and every text of this
    image, and (f_i - mean f) . t_l, which also says how near the image is to texts at all. With neighbours each is
    averaged with the neighbours' mean first.

    Args:
        feature_ND: L2-normalised features.
        text_CD: L2-normalised class embeddings.
        class_N: int64 class of each image, best the transductive answer's.
        neighbours: Of the same images.
    """
    score_N2 = _scores(feature_ND - feature_ND.mean(dim=0), text_CD, class_N)
    if neighbours is not None and neighbours.index_NK.shape[1]:
        score_N2 = (score_N2 + score_N2[neighbours.index_NK.long()].mean(dim=1)) / 2
    return _standardised(score_N2, score_N2.mean(dim=0), score_N2.std(dim=0, correction=0))


def _scores(offset_ND: Tensor, text_CD: Tensor, class_N: Tensor) -> Tensor:
    own_ND = text_CD[class_N]
    centred_N = (offset_ND * (own_ND - text_CD.mean(dim=0))).sum(dim=1)
    return torch.stack([centred_N, (offset_ND * own_ND).sum(dim=1)], dim=1)


def _standardised(score_N2: Tensor, mean_2: Tensor, deviation_2: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny
    return ((score_N2 - mean_2) / deviation_2.clamp_min(tiny)).sum(dim=1)


def detect(familiarity_N: Tensor) -> Groups:
    """Two Gaussians of one variance v on the scores, with weights w and means m, the lower one first.

    The probability of the lower one is then sigmoid(offset - slope score) with slope = (m_2 - m_1) / v and
    offset = slope (m_1 + m_2) / 2 + log(w_1 / w_2).
    """
    value_N1 = familiarity_N.double().cpu().numpy()[:, None]
    if len(value_N1) < LEAST_IMAGES or not value_N1.std():
        return Groups(share=0.0, separation=0.0, bimodal=False, slope=0.0, offset=-float("inf"))
    start = np.quantile(value_N1, [0.15, 0.65])[:, None]
    two = GaussianMixture(2, covariance_type="tied", means_init=start, weights_init=[0.3, 0.7], max_iter=500, tol=1e-4)
    one = GaussianMixture(1, covariance_type="tied")
    two.fit(value_N1)
    one.fit(value_N1)
    lower, upper = two.means_[:, 0].argsort()
    low, high, variance = float(two.means_[lower, 0]), float(two.means_[upper, 0]), float(two.covariances_[0, 0])
    slope = (high - low) / variance
    return Groups(
        share=float(two.weights_[lower]),
        separation=(high - low) / variance**0.5,
        bimodal=bool(two.bic(value_N1) < one.bic(value_N1)),
        slope=slope,
        offset=slope * (low + high) / 2 + float(np.log(two.weights_[lower] / two.weights_[upper])),
    )


@dataclass(frozen=True, kw_only=True)
class OpenSetRule:
    """What tells of any image how probably it belongs to none of the names, of the size of two features."""

    groups: Groups
    mean_D: Tensor
    """Of the sample's features."""
    mean_2: Tensor
    """Of the two scores of `familiarity` over the sample; so is the next."""
    deviation_2: Tensor

    def familiarity(self, feature_AD: Features, text_CD: Tensor, row_N: Tensor) -> Tensor:
        """float32 [N]: as `familiarity` without neighbours, an image's class the nearest text; block by block."""
        return _standardised(_nearest_scores(feature_AD, text_CD, row_N, self.mean_D), self.mean_2, self.deviation_2)

    def none_probability(self, feature_AD: Features, text_CD: Tensor, row_N: Tensor) -> Tensor:
        """float32 [N]: the probability that an image belongs to none of the names.

        Args:
            feature_AD: L2-normalised features of all images.
            text_CD: L2-normalised class embeddings of the same wording as those fitted with.
            row_N: int64 rows of the images that are asked for.
        """
        return self.groups.none_probability(self.familiarity(feature_AD, text_CD, row_N))

    def state(self) -> dict[str, Tensor]:
        """As tensors, for a file."""
        numbers = torch.tensor([float(value) for value in asdict(self.groups).values()], dtype=torch.float64)
        return {"groups": numbers, "mean_D": self.mean_D, "mean_2": self.mean_2, "deviation_2": self.deviation_2}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> OpenSetRule:
        """The inverse of `state`."""
        names = [field.name for field in fields(Groups)]
        values: dict[str, Any] = dict(zip(names, state["groups"].tolist(), strict=True))
        groups = Groups(**(values | {"bimodal": bool(values["bimodal"])}))
        return cls(groups=groups, **{name: state[name] for name in ("mean_D", "mean_2", "deviation_2")})


def fit_rule(feature_AD: Features, text_CD: Tensor, row_N: Tensor, *, share: float | None = None) -> OpenSetRule | None:
    """Fits the rule on an even sample of the images; None where there are too few to tell.

    Args:
        feature_AD: L2-normalised features of all images.
        text_CD: L2-normalised class embeddings.
        row_N: int64 rows of the images to fit it on; no label of theirs is known.
        share: The share of images of no named class, where it is stated: the probability is then 1/2 where the scores
            of that share of the images end.
    """
    if len(row_N) < LEAST_IMAGES:
        return None
    row_S = even_sample(row_N, _SAMPLE)
    mean_D = feature_AD[row_S].mean(dim=0)
    score_S2 = _nearest_scores(feature_AD, text_CD, row_S, mean_D)
    mean_2, deviation_2 = score_S2.mean(dim=0), score_S2.std(dim=0, correction=0)
    score_S = _standardised(score_S2, mean_2, deviation_2)
    groups = detect(score_S)
    if share is not None and groups.slope:
        groups = replace(groups, offset=groups.slope * float(score_S.double().quantile(share)))
    return OpenSetRule(groups=groups, mean_D=mean_D, mean_2=mean_2, deviation_2=deviation_2)


def rule_of(data: DataSettings, feature_AD: Features, text_CD: Tensor, row_N: Tensor) -> OpenSetRule | None:
    """The rule that the settings ask for, fitted on the images that are adapted to; arguments as of `fit_rule`."""
    stated = None if isinstance(data.reject, str | bool) else data.reject
    return fit_rule(feature_AD, text_CD, row_N, share=stated)


def kept_rows(data: DataSettings, feature_AD: Features, row_N: Tensor, text_CD: Tensor) -> Tensor:
    """The rows of the images to learn from, without those of no named class where ``data.reject`` says so.

    Args:
        data: The settings.
        feature_AD: Features of all images.
        row_N: int64 rows of those that are adapted to.
        text_CD: L2-normalised class embeddings of the first wording.
    """
    rule = rule_of(data, feature_AD, text_CD, row_N) if data.rejects else None
    return row_N if rule is None else row_N[rule.none_probability(feature_AD, text_CD, row_N) <= 0.5]


def _nearest_scores(feature_AD: Features, text_CD: Tensor, row_N: Tensor, mean_D: Tensor) -> Tensor:
    """The two scores of `familiarity` [N, 2] with the nearest text as class; N x C cosines never exist at once."""
    score_N2 = torch.empty(len(row_N), 2)
    for rows in blocks(len(row_N), max(256, _BLOCK_ELEMENTS // len(text_CD))):
        feature_BD = feature_AD[row_N[rows]]
        class_B = (feature_BD @ text_CD.T).argmax(dim=1)
        score_N2[rows] = _scores(feature_BD - mean_D, text_CD, class_B)
    return score_N2
