"""Probabilities that a review has scaled, and thresholds that keep what they promise."""

import numpy as np
import pytest

from raydapt.review.calibration import LEAST_ANSWERS, choose_threshold, curve, fit, together
from raydapt.review.design import make_design
from raydapt.review.estimates import Answers, Estimator
from tests.review.populations import population


def reviewed(seed: int, count: int, **kind: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Probabilities after a review, whether each answer is right, and the answers that were used."""
    people, truth_N = population(3, **kind)  # type: ignore[arg-type]
    design = make_design(people, seed=seed)
    index_M = design.order_A[:count]
    estimator = Estimator(people, design)
    found = fit(estimator, Answers(index_M=index_M, class_M=truth_N[index_M]), 1)
    return found.probabilities(together(people, 1)), people.class_RN[1] == truth_N, found.answers


@pytest.mark.parametrize("kind", [{"strength": 3.0}, {"strength": 3.0, "heat": 4.0}, {"strength": 3.0, "heat": 0.4}])
def test_what_is_taken_is_right_as_often_as_was_wanted(kind: dict[str, float]) -> None:
    shares = []
    for seed in range(25):
        probability_N, right_N, _ = reviewed(seed, 60, **kind)
        least, kept, _ = choose_threshold(probability_N, 0.92)
        if kept:
            shares.append(right_N[probability_N >= least].mean())
    assert len(shares) > 15
    assert np.mean(shares) > 0.885  # underconfident ones are kept better than was asked for


def test_overconfident_probabilities_are_brought_down() -> None:
    probability_N, right_N, _ = reviewed(0, 200, strength=3.0, heat=4.0)
    people, _ = population(3, strength=3.0, heat=4.0)
    before = abs(together(people, 1).mean() - right_N.mean())
    assert abs(probability_N.mean() - right_N.mean()) < 0.5 * before


def test_images_of_no_class_lower_all_probabilities() -> None:
    probability_N, _, _ = reviewed(0, 200, strength=20.0, none=0.3)
    assert 0.6 < probability_N.max() < 0.8


def test_few_answers_leave_the_temperature_of_the_development_sets() -> None:
    people, _ = population(3, strength=3.0)
    probability_N, _, answers = reviewed(0, LEAST_ANSWERS - 1, strength=3.0)
    assert answers == 0
    for told, p in zip(probability_N, together(people, 1).clip(1e-4, 1 - 1e-4), strict=True):
        odds = (p / (1 - p)) ** (1 / 1.5)
        assert told == pytest.approx(odds / (1 + odds))


def test_the_threshold_is_the_lowest_that_does() -> None:
    probability_N = np.array([0.9, 0.5, 1.0, 0.8, 0.8, 0.2])
    best = None
    for least in sorted(set(probability_N.tolist()), reverse=True):  # naive: every threshold, from high to low
        inside = probability_N[probability_N >= least]
        if inside.mean() >= 0.85:
            best = (least, len(inside), float(inside.mean()))
    assert choose_threshold(probability_N, 0.85) == pytest.approx(best)
    assert choose_threshold(probability_N * 0.5, 0.85)[1] == 0


def test_the_curve_falls_with_what_is_taken() -> None:
    order_N, precision_N = curve(np.array([0.2, 0.9, 0.5]))
    assert order_N.tolist() == [1, 2, 0]
    assert precision_N == pytest.approx([0.9, 0.7, 1.6 / 3])
