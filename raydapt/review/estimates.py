"""What a person's answers say of all images: shares with 95 % intervals.

The estimate of a mean over all images is the stratified difference estimator (Cochran, Sampling Techniques, 1977,
sections 5.3 and 7.1; with predictions as the auxiliary variable: prediction-powered inference, Angelopoulos et al.,
Science 2023, whose weight lambda is that of PPI++, Angelopoulos et al. 2023, proposition 2),

    mean = lambda mean_N(f) + sum_h W_h mean_{i answered in h}(y_i - lambda f_i),
    variance = sum_h W_h^2 (1 - n_h / N_h) s_h^2 / n_h,

y what was answered, f what was predicted, W_h = N_h / N. It is unbiased for a fixed lambda, whatever the predictions
are worth. s_h^2 is the variance seen in the stratum, drawn towards the predicted one as if two more answers had shown
that (scaled to the errors seen so far): a handful of right answers does not mean that there are no wrong ones.

The interval of a share is Wilson's (1927) with the sample size at which simple random sampling has the same variance,
and Student's quantile for the few degrees of freedom. Simulations hold it to its 95 % (tests/review). Images that
nobody could tell count as not asked about.

Legend: N images, M answered, R answerers, C classes, H strata.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from raydapt.review.design import Design
from raydapt.review.population import Floats, Indices, Population, consensus, softened

NONE = -1
"""The answer that an image is of none of the classes."""
LEVEL = 0.95
_PRIOR_ANSWERS = 2.0
_PRIOR_HALF = 0.5
_MOST_TIMES = 6.0
"""An interval claims no more than so many times the answers that there are."""


@dataclass(frozen=True)
class Estimate:
    """A share of all images, 0 to 1 (a difference of shares: -1 to 1), with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The images that a person has told the class of.

    Attributes:
        index_M: int64, which images.
        class_M: int64, their classes; `NONE` for an image of no class. Those that nobody could tell are left out.
    """

    index_M: Indices
    class_M: Indices


class Estimator:
    """All estimates of a review; what needs every image is computed once."""

    def __init__(self, population: Population, design: Design) -> None:
        self.population, self.design = population, design
        self.consensus_N, right_RN = consensus(population)
        self._right_RN = right_RN
        self._size_H = np.bincount(design.stratum_N)
        self._weight_H = self._size_H / len(design.stratum_N)
        soft_RN = softened(right_RN)
        self._spread_RN = soft_RN * (1.0 - soft_RN)
        self._spread_RH = np.stack([self._means(spread_N) for spread_N in self._spread_RN])
        self._right_R = right_RN.mean(axis=1)
        self._error_H = 1.0 - self._means(soft_RN.mean(axis=0))

    def ready(self, answers: Answers) -> bool:
        """Whether every stratum has two answers: before that there is no interval."""
        return bool((self._counts(answers) >= np.minimum(2, self._size_H)).all())

    def accuracy(self, answers: Answers, answerer: int) -> Estimate:
        """Share of all images that an answerer names rightly; an image of no class is named wrongly by everyone."""
        index_M = answers.index_M
        right_M = self._right(answers, answerer)
        scale = self._scale(right_M, answerer, index_M)
        control_M = self._right_RN[answerer, index_M]
        spread_H = scale * self._spread_RH[answerer]
        mean, variance = self._mean(answers, right_M, control_M, float(self._right_R[answerer]), spread_H)
        return _share(mean, variance, len(index_M), self._freedom(answers))

    def difference(self, answers: Answers, answerer: int, other: int) -> Estimate:
        """The accuracy of an answerer less that of another, over the same answers."""
        index_M = answers.index_M
        gain_M = self._right(answers, answerer) - self._right(answers, other)
        control_M = self._right_RN[answerer, index_M] - self._right_RN[other, index_M]
        class_RN = self.population.class_RN
        spread_H = self._means((class_RN[answerer] != class_RN[other]).astype(np.float64))  # which is 1 at most
        total = float(self._right_R[answerer] - self._right_R[other])
        mean, variance = self._mean(answers, gain_M, control_M, total, spread_H)
        half = float(student.ppf((1 + LEVEL) / 2, self._freedom(answers))) * variance**0.5
        return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0))

    def class_shares(self, answers: Answers) -> list[Estimate]:
        """Share of every class among all images, and of images of no class, which is the last; C + 1 of them."""
        found = []
        for class_ in range(len(self.population.classes)):
            is_M = (answers.class_M == class_).astype(np.float64)
            control_N = (self.consensus_N == class_).astype(np.float64)
            spread_H = self._means(control_N) * self._error_H
            control_M = control_N[answers.index_M]
            mean, variance = self._mean(answers, is_M, control_M, float(control_N.mean()), spread_H)
            found.append(_share(mean, variance, len(is_M), self._freedom(answers)))
        everything_M = np.ones(len(answers.index_M), dtype=np.bool_)
        of_none = self._ratio(answers, (answers.class_M == NONE).astype(np.float64), everything_M)
        return [*found, of_none or Estimate(0.0, 0.0, 1.0)]

    def recalls(self, answers: Answers, answerer: int) -> list[Estimate | None]:
        """Per class, the share of its images that an answerer names rightly; None for a class nobody has met."""
        right_M = self._right(answers, answerer)
        return [self._ratio(answers, right_M, answers.class_M == c) for c in range(len(self.population.classes))]

    def precisions(self, answers: Answers, answerer: int) -> list[Estimate | None]:
        """Per class, the share of the images that an answerer calls so which are it; None where nobody was asked."""
        right_M, class_M = self._right(answers, answerer), self.population.class_RN[answerer, answers.index_M]
        return [self._ratio(answers, right_M, class_M == c) for c in range(len(self.population.classes))]

    def precision_among(self, answers: Answers, answerer: int, among_N: NDArray[np.bool_]) -> Estimate | None:
        """Share of some images that an answerer names rightly; None where none of them was answered."""
        return self._ratio(answers, self._right(answers, answerer), among_N[answers.index_M])

    def strata(self) -> list[dict[str, float]]:
        """Every stratum: its images, and how many of its answers were expected to be wrong, as a share."""
        return [
            {"images": int(size), "expected_errors": float(error)}
            for size, error in zip(self._size_H, self._error_H, strict=True)
        ]

    def weights(self, answers: Answers) -> Floats:
        """How many images each answered one stands for, [M]."""
        count_H = self._counts(answers)
        weight_M: Floats = (self._size_H / np.maximum(count_H, 1))[self.design.stratum_N[answers.index_M]]
        return weight_M

    def _ratio(self, answers: Answers, right_M: Floats, among_M: NDArray[np.bool_]) -> Estimate | None:
        """A share among some images: weighted, with Kish's (1965) effective number of answers."""
        weight_M = self.weights(answers)[among_M]
        if not len(weight_M):
            return None
        share = float((weight_M * right_M[among_M]).sum() / weight_M.sum())
        effective = float(weight_M.sum() ** 2 / (weight_M**2).sum())
        smooth = _smooth(share, len(weight_M))
        return _share(share, smooth * (1 - smooth) / effective, len(weight_M), max(len(weight_M) - 1, 3))

    def _right(self, answers: Answers, answerer: int) -> Floats:
        right_M: Floats = (self.population.class_RN[answerer, answers.index_M] == answers.class_M).astype(np.float64)
        return right_M

    def _scale(self, right_M: Floats, answerer: int, index_M: Indices) -> float:
        """How much larger the errors seen are than those predicted, with one answer's worth of doubt."""
        predicted_M = softened(self._right_RN[answerer, index_M])
        seen, expected = ((right_M - predicted_M) ** 2).sum(), (predicted_M * (1.0 - predicted_M)).sum()
        return float((seen + 1.0) / (expected + 1.0))

    def _mean(
        self, answers: Answers, y_M: Floats, control_M: Floats, control_mean: float, spread_H: Floats
    ) -> tuple[float, float]:
        """Estimate and variance of a mean over all images (the module's formulas)."""
        stratum_M, count_H = self.design.stratum_N[answers.index_M], self._counts(answers)
        y_off_M, control_off_M = (v_M - _stratum_means(v_M, stratum_M, count_H)[stratum_M] for v_M in (y_M, control_M))
        part_H = self._weight_H**2 / (np.maximum(count_H, 1) * np.maximum(count_H - 1, 1))
        part_M = part_H[stratum_M]
        explained, own = float((part_M * y_off_M * control_off_M).sum()), float((part_M * control_off_M**2).sum())
        lambda_ = min(max(explained / own, 0.0), 1.0) if own > 0 else 0.0
        mean_H = _stratum_means(y_M - lambda_ * control_M, stratum_M, count_H)
        mean = lambda_ * control_mean + float((self._weight_H * mean_H).sum())
        rest_M = y_off_M - lambda_ * control_off_M
        squares_H = np.bincount(stratum_M, rest_M**2, minlength=len(count_H))
        drawn_H = (squares_H + _PRIOR_ANSWERS * spread_H) / (np.maximum(count_H - 1, 0) + _PRIOR_ANSWERS)
        open_H = 1.0 - count_H / self._size_H
        variance = float((self._weight_H**2 * open_H * drawn_H / np.maximum(count_H, 1)).sum())
        return mean, variance

    def _counts(self, answers: Answers) -> Indices:
        return np.bincount(self.design.stratum_N[answers.index_M], minlength=len(self._size_H))

    def _means(self, value_N: Floats) -> Floats:
        """The mean of every stratum over all its images, [H]."""
        mean_H: Floats = np.bincount(self.design.stratum_N, value_N) / self._size_H
        return mean_H

    def _freedom(self, answers: Answers) -> int:
        return max(len(answers.index_M) - len(self._size_H), 3)


def _stratum_means(value_M: Floats, stratum_M: Indices, count_H: Indices) -> Floats:
    mean_H: Floats = np.bincount(stratum_M, value_M, minlength=len(count_H)) / np.maximum(count_H, 1)
    return mean_H


def _smooth(share: float, answers: int) -> float:
    return (min(max(share, 0.0), 1.0) * answers + _PRIOR_HALF) / (answers + 2 * _PRIOR_HALF)


def _share(mean: float, variance: float, answers: int, freedom: int) -> Estimate:
    """A share with Wilson's interval for the number of answers that would have this variance under random sampling."""
    share = min(max(mean, 0.0), 1.0)
    if variance <= 0.0:  # every image was answered
        return Estimate(share, share, share)
    smooth = _smooth(share, answers)
    effective = min(smooth * (1.0 - smooth) / variance, _MOST_TIMES * answers)
    z = float(student.ppf((1 + LEVEL) / 2, freedom))
    centre = (share + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * (share * (1 - share) / effective + z * z / (4 * effective**2)) ** 0.5
    return Estimate(share, min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share))
