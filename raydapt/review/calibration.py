"""How likely each of a run's answers is right, and the threshold from which on enough of them are.

Where a review is there, its answers scale the probabilities: Platt's (1999) logistic of the log odds that zero-shot and
the run give together, fitted with the answers' sampling weights and drawn towards no change,

    probability = (1 - share of no class) sigmoid(a x + b),  x = log(p / (1 - p)).

Without a review a is `1 / UNREVIEWED_TEMPERATURE` and b is 0: temperature scaling (Guo et al., ICML 2017) by a
temperature that development sets have chosen, since p is too sure (docs/review.md). Nobody has checked it on these
images.

Legend: N images, M answered.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from raydapt.review.estimates import NONE, Answers, Estimator
from raydapt.review.population import Floats, Population, consensus

LEAST_ANSWERS = 20
"""A review with fewer says too little about probabilities."""
UNREVIEWED_TEMPERATURE = 1.5
"""Divides the log odds where there is no review."""
_CLIP = 1e-4
_PULL = 1.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """From what zero-shot and a run give together to the probability that the run is right.

    Attributes:
        slope: a; below 1 where confidences are too sure.
        offset: b.
        ceiling: 1 less the share of images of no class.
        answers: That it was fitted to; 0 without a review.
    """

    slope: float
    offset: float
    ceiling: float
    answers: int

    def probabilities(self, together_N: Floats) -> Floats:
        """Probability that each answer is right, [N]."""
        scaled: Floats = self.ceiling * expit(self.slope * _log_odds(together_N) + self.offset)
        return scaled


UNREVIEWED = Calibration(slope=1 / UNREVIEWED_TEMPERATURE, offset=0.0, ceiling=1.0, answers=0)


def together(population: Population, answerer: int) -> Floats:
    """The mean over the answerers of what they give to one answerer's class, [N]."""
    right_N: Floats = consensus(population)[1][answerer]
    return right_N


def fit(estimator: Estimator, answers: Answers, answerer: int) -> Calibration:
    """The calibration of a run by a review; the one without a review where there are fewer than `LEAST_ANSWERS`."""
    if len(answers.index_M) < LEAST_ANSWERS:
        return UNREVIEWED
    population = estimator.population
    weight_M = estimator.weights(answers)
    weight_M = weight_M * len(weight_M) / weight_M.sum()
    inside_M = answers.class_M != NONE
    x_M = _log_odds(together(population, answerer)[answers.index_M])[inside_M]
    right_M = (population.class_RN[answerer, answers.index_M] == answers.class_M)[inside_M]
    none = float(weight_M[~inside_M].sum())

    def loss(at: Floats) -> float:
        z_M = at[0] * x_M + at[1]
        wrong_M = np.logaddexp(0.0, np.where(right_M, -z_M, z_M))
        return float((weight_M[inside_M] * wrong_M).sum() + _PULL / 2 * ((at[0] - 1.0) ** 2 + at[1] ** 2))

    slope, offset = minimize(loss, np.array([1.0, 0.0]), bounds=[(0.0, None), (None, None)]).x
    ceiling = 1.0 - none / len(weight_M)
    return Calibration(slope=float(slope), offset=float(offset), ceiling=ceiling, answers=len(weight_M))


def curve(probability_N: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The images from the surest on, [N], and the share expected right among those up to each, [N]."""
    order_N = np.argsort(-probability_N, kind="stable")
    precision_N: Floats = np.cumsum(probability_N[order_N]) / np.arange(1, len(order_N) + 1)
    return order_N, precision_N


def choose_threshold(probability_N: Floats, precision: float) -> tuple[float, int, float]:
    """The lowest threshold from which on so many answers are expected right, the images kept, and the share right.

    Args:
        probability_N: That each answer is right.
        precision: The share of right ones that is wanted, 0 to 1.
    """
    order_N, precision_N = curve(probability_N)
    sorted_N = probability_N[order_N]
    last_of_its_value_N = np.append(sorted_N[1:] < sorted_N[:-1], True)
    enough = np.flatnonzero((precision_N >= precision) & last_of_its_value_N)
    if not len(enough):
        return 1.0 + _CLIP, 0, 0.0
    at = int(enough[-1])
    return float(sorted_N[at]), at + 1, float(precision_N[at])


def _log_odds(share_N: Floats) -> Floats:
    odds_N: Floats = logit(np.clip(share_N, _CLIP, 1 - _CLIP))
    return odds_N
