"""How many answers can be taken over, against a loop over all thresholds."""

import numpy as np
import pytest

from raydapt.report.classes import Predictions
from raydapt.report.coverage import coverage_of


def predictions(images: int, *, labelled: bool = True, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    truth_N = rng.integers(0, 3, images)
    sure_N = rng.uniform(0.6, 1.0, images)
    after_N = np.where(rng.uniform(size=images) < sure_N, truth_N, (truth_N + 1) % 3)
    before_N = np.where(rng.uniform(size=images) < 0.8, after_N, (after_N + 1) % 3)
    return Predictions(
        names=("a", "b", "c"),
        splits=("test",),
        before_N=before_N,
        after_N=after_N,
        truth_N=truth_N if labelled else np.full(images, -1),
        before_confidence_N=rng.uniform(0.6, 1.0, images),
        confidence_N=sure_N,
    )


def naive(told: Predictions) -> tuple[int, float, float]:
    """Images taken, the least probability among them, and the percent of them that are right."""
    rows = []
    for before, after, truth, sure_before, sure in zip(
        told.before_N, told.after_N, told.truth_N, told.before_confidence_N, told.confidence_N, strict=True
    ):
        p = (sure + (sure_before if before == after else (1 - sure_before) / 2)) / 2
        odds = (p / (1 - p)) ** (1 / 1.5)
        rows.append((odds / (1 + odds), after == truth))
    rows.sort(reverse=True)
    best = 0
    for kept in range(1, len(rows) + 1):
        if sum(p for p, _ in rows[:kept]) / kept >= 0.95:
            best = kept
    return best, rows[best - 1][0], 100 * sum(right for _, right in rows[:best]) / max(best, 1)


def test_as_many_are_taken_as_a_loop_over_all_thresholds_takes() -> None:
    told = predictions(300)
    kept, least, right = naive(told)
    assert 0 < kept < 300
    found = coverage_of(told)
    assert found is not None
    assert found.sentence == (
        f"For 95 % right, {100 * kept / 300:.0f} % of the images can be taken, from a probability of {least:.2f} on; "
        f"{right:.1f} % of them are right."
    )


def test_without_labels_nothing_is_said_of_right_ones() -> None:
    found = coverage_of(predictions(300, labelled=False))
    assert found is not None
    assert "are right" not in found.sentence
    assert found.sentence in found.picture.alt


@pytest.mark.parametrize("images", [1, 19])
def test_few_images_have_no_curve(images: int) -> None:
    assert coverage_of(predictions(images)) is None


def test_runs_that_kept_no_confidences_have_no_curve() -> None:
    told = predictions(50)
    told.confidence_N[3] = np.nan
    assert coverage_of(told) is None
