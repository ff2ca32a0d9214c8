"""What answers say of all images, against naive sums, and over hundreds of simulated reviews."""

import numpy as np
import pytest

from raydapt.review.design import Design, make_design, simple_design
from raydapt.review.estimates import NONE, Answers, Estimate, Estimator
from tests.review.populations import population


def answers_of(design: Design, truth_N: np.ndarray, count: int) -> Answers:
    index_M = design.order_A[:count]
    return Answers(index_M=index_M, class_M=truth_N[index_M])


KINDS = {
    "middling": {"strength": 2.0},
    "good": {"strength": 6.0},
    "good, overconfident": {"strength": 6.0, "heat": 3.0},
    "good, underconfident": {"strength": 6.0, "heat": 0.4},
    "very good": {"strength": 20.0, "none": 0.005},
}


def simulate(kind: str, reviews: int, count: int = 60) -> tuple[float, float, float]:
    """Coverage in percent, bias, and mean width of the accuracy's interval."""
    people, truth_N = population(3, **KINDS[kind])
    true = float((people.class_RN[1] == truth_N).mean())
    found = []
    for seed in range(reviews):
        design = make_design(people, seed=seed)
        found.append(Estimator(people, design).accuracy(answers_of(design, truth_N, count), 1))
    covered = np.mean([estimate.low <= true <= estimate.high for estimate in found])
    bias = np.mean([estimate.value - true for estimate in found])
    return 100 * float(covered), float(bias), float(np.mean([estimate.width for estimate in found]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_of_an_accuracy_holds_the_truth(kind: str) -> None:
    covered, bias, _ = simulate(kind, 120)
    assert covered >= 90.0  # of 120; 500 of each are for the slow test
    assert abs(bias) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_over_500_reviews_95_percent_of_the_intervals_hold_the_truth(kind: str) -> None:
    covered, bias, _ = simulate(kind, 500)
    assert 93.0 <= covered <= 99.5  # at least what it says; more where unseen errors are doubted in vain
    assert abs(bias) < 0.005


def wilson(right: int, count: int) -> float:
    """The width of Wilson's interval."""
    z, share = 1.96, right / count
    return 2 * z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5


def test_intervals_are_narrower_than_those_of_random_sampling() -> None:
    people, truth_N = population(3, **KINDS["good"])
    right_N = people.class_RN[1] == truth_N
    random = [wilson(int(right_N[simple_design(800, seed=s).order_A[:60]].sum()), 60) for s in range(100)]
    assert simulate("good", 100)[2] < 0.9 * np.mean(random)


def test_the_difference_of_two_runs_holds_the_truth() -> None:
    people, truth_N = population(3, strength=2.0)
    right_RN = people.class_RN == truth_N
    true, covered, widths = float(right_RN[1].mean() - right_RN[0].mean()), 0, []
    for seed in range(120):
        design = make_design(people, seed=seed)
        estimate = Estimator(people, design).difference(answers_of(design, truth_N, 60), 1, 0)
        covered += estimate.low <= true <= estimate.high
        widths.append(estimate.width)
    assert covered >= 108
    assert np.mean(widths) < 0.25


def test_class_shares_and_the_share_of_no_class_hold_the_truth() -> None:
    people, truth_N = population(3, strength=4.0, none=0.1)
    true = [float((truth_N == c).mean()) for c in (*range(8), NONE)]
    covered = np.zeros(9)
    for seed in range(80):
        design = make_design(people, seed=seed)
        shares = Estimator(people, design).class_shares(answers_of(design, truth_N, 60))
        covered += [share.low <= t <= share.high for share, t in zip(shares, true, strict=True)]
    assert (covered >= 68).all()


def test_estimates_are_the_weighted_sums_of_the_formulas() -> None:
    """One review, step by step with loops, at the lambda of the code's own formula."""
    people, truth_N = population(5, n=200, strength=2.0)
    design = make_design(people, seed=1)
    answers = answers_of(design, truth_N, 40)
    estimator = Estimator(people, design)
    right_RN = np.zeros((2, 200))
    for r in range(2):
        for i in range(200):
            for k in range(2):
                same = people.class_RN[k, i] == people.class_RN[r, i]
                confidence = people.confidence_RN[k, i]
                right_RN[r, i] += (confidence if same else (1 - confidence) / 7) / 2
    y = {int(i): float(people.class_RN[1, i] == c) for i, c in zip(answers.index_M, answers.class_M, strict=True)}
    members = {h: [i for i in y if design.stratum_N[i] == h] for h in range(5)}
    upper = lower = 0.0
    for h, inside in members.items():
        part = (np.mean(design.stratum_N == h)) ** 2 / len(inside) / (len(inside) - 1)
        mean_y, mean_f = np.mean([y[i] for i in inside]), np.mean([right_RN[1, i] for i in inside])
        upper += part * sum((y[i] - mean_y) * (right_RN[1, i] - mean_f) for i in inside)
        lower += part * sum((right_RN[1, i] - mean_f) ** 2 for i in inside)
    lambda_ = min(max(upper / lower, 0.0), 1.0)
    mean = lambda_ * right_RN[1].mean()
    for h, inside in members.items():
        share = np.mean(design.stratum_N == h)
        mean += share * np.mean([y[i] - lambda_ * right_RN[1, i] for i in inside])
    assert estimator.accuracy(answers, 1).value == pytest.approx(mean)


def test_when_every_image_was_answered_there_is_no_doubt() -> None:
    people, truth_N = population(2, n=60)
    design = make_design(people, seed=0)
    estimator, answers = Estimator(people, design), answers_of(design, truth_N, 60)
    true = float((people.class_RN[1] == truth_N).mean())
    estimate = estimator.accuracy(answers, 1)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((true, true, true))
    for c, recall in enumerate(estimator.recalls(answers, 1)):
        of_class_N = truth_N == c
        assert recall is not None
        assert recall.value == pytest.approx(float((people.class_RN[1, of_class_N] == c).mean()))


def test_no_error_seen_does_not_mean_no_error() -> None:
    people, _ = population(4, strength=20.0, none=0.0)
    design = make_design(people, seed=0)
    index_M = design.order_A[:30]
    answers = Answers(index_M=index_M, class_M=people.class_RN[1, index_M])
    estimate = Estimator(people, design).accuracy(answers, 1)
    assert estimate.high >= estimate.value > 0.95
    assert estimate.low < 0.97


def test_it_is_ready_with_two_answers_in_every_stratum() -> None:
    people, truth_N = population(4)
    design = make_design(people, seed=0)
    estimator = Estimator(people, design)
    assert not estimator.ready(answers_of(design, truth_N, 6))
    assert estimator.ready(answers_of(design, truth_N, 10))


def test_an_estimate_knows_its_width() -> None:
    assert Estimate(0.5, 0.4, 0.7).width == pytest.approx(0.3)
