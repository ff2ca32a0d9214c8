"""Estimates of hours, storage and cost, against sums done by hand."""

from typing import Any

import pytest

from raydapt.errors import UserError
from raydapt.verbs.estimate import ASSUMPTIONS, check, estimate, format_check, format_estimate


def metrics(rows: int, *, seconds: float, train_s: float = 100.0, capped: bool = True) -> dict[str, Any]:
    stage = {"rows": rows, "rows_computed": rows, "startup_seconds": 20.0, "actors": 2, "bytes": rows * 500}
    train = {"seconds": train_s, "images": 6400, "images_per_s": 6400 / train_s, "workers": 0, "capped": capped}
    return {"stages": {"features": {**stage, "seconds": seconds}}, "train": train}


def test_a_stage_starts_once_and_then_goes_at_the_measured_rate() -> None:
    features, train = estimate(metrics(1000, seconds=30.0), 100_000, price=2.0)
    assert features.hours * 3600 == pytest.approx(20 + 100_000 * 10 / 1000)
    assert features.actor_hours == pytest.approx(2 * features.hours)
    assert features.cost == pytest.approx(2.0 * features.actor_hours)
    assert features.gigabytes == pytest.approx(0.05)
    assert train.hours * 3600 == pytest.approx(100)  # capped: more images, no more steps


def test_more_actors_share_the_rows_but_not_the_start() -> None:
    (features, _) = estimate(metrics(1000, seconds=30.0), 100_000, actors=8)
    assert features.hours * 3600 == pytest.approx(20 + 100_000 * 2 * 10 / 1000 / 8)


def test_training_without_a_limit_grows_with_the_images() -> None:
    _, train = estimate(metrics(1000, seconds=30.0, capped=False), 10_000)
    assert train.hours * 3600 == pytest.approx(1000)


def test_a_measured_run_is_predicted_by_itself_exactly() -> None:
    run = metrics(1000, seconds=30.0)
    assert check(run, run) == [("features", pytest.approx(30.0), 30.0), ("train", pytest.approx(100.0), 100.0)]
    assert "ratio 1.00" in format_check(check(run, run))


def test_another_run_is_compared_at_its_own_size() -> None:
    ((_, predicted, took), _) = check(metrics(1000, seconds=30.0), metrics(4000, seconds=50.0))
    assert (predicted, took) == (pytest.approx(60.0), 50.0)


def test_the_table_names_its_assumptions() -> None:
    text = format_estimate([line for n in (10_000, 100_000) for line in estimate(metrics(1000, seconds=30.0), n)])
    assert all(assumption in text for assumption in ASSUMPTIONS)
    assert "100,000" in text
    assert text.count("all ") == 2


def test_parts_made_during_the_start_belong_to_the_start() -> None:
    """Two actors, parts of 100 rows, 4 s each: the first two parts are there at 20 s, the other eight in 16 s."""
    run = metrics(1000, seconds=36.0)
    run["stages"]["features"]["startup_rows"] = 100
    assert estimate(run, 1000)[0].hours * 3600 == pytest.approx(36)
    assert estimate(run, 100_000)[0].hours * 3600 == pytest.approx(20 + 998 * 4 / 2)
    assert estimate(run, 50)[0].hours * 3600 == pytest.approx(20)


def test_too_few_parts_are_taken_at_the_rate_of_the_model() -> None:
    run = metrics(250, seconds=21.0)
    run["stages"]["features"] |= {"startup_rows": 125, "model_seconds": 5.0}
    assert estimate(run, 100_250)[0].hours * 3600 == pytest.approx(20 + 100_000 * 5 / 250 / 2)


def test_parts_that_arrived_together_are_taken_at_the_rate_of_the_model() -> None:
    """Four parts of 100 rows: the first was seen when all were as good as there, though the model took 4 s for them."""
    run = metrics(400, seconds=20.2)
    run["stages"]["features"] |= {"startup_rows": 100, "model_seconds": 4.0}
    assert estimate(run, 1600)[0].hours * 3600 == pytest.approx(20 + 1400 * 4 / 400 / 2)


def test_what_does_not_grow_with_the_images() -> None:
    run = metrics(1000, seconds=30.0)
    stage = run["stages"]["features"]
    run["stages"] |= {
        "synthetic": stage | {"rows": 500, "rows_computed": 500},
        "lora": {"seconds": 70.0, "rows": 160, "steps": 1000},
        "partial_labels": {"seconds": 3.0, "rows": 1000},
        "pixels": stage | {"actors": 0},
    }
    seconds = {line.name: line.hours * 3600 for line in estimate(run, 10_000)}
    assert seconds["synthetic"] == pytest.approx(30)
    assert seconds["lora"] == pytest.approx(70)
    assert seconds["partial_labels"] == pytest.approx(30)
    assert seconds["pixels"] == pytest.approx(20 + 100)


def test_a_run_that_computed_nothing_tells_nothing() -> None:
    with pytest.raises(UserError, match="computed nothing"):
        estimate({"stages": {}, "train": {"images_per_s": 0.0}}, 10_000)
