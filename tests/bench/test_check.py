"""The gate on speed: what counts as fallen, and that the kept ratios are those that are measured."""

import importlib
import json
from collections.abc import Iterator, Mapping

import pytest

from tests.bench import check

KEPT = {"a": {"ratio": 10.0, "tolerance": 0.2}, "b": {"ratio": 2.0, "tolerance": 0.5}}


def measuring(rounds: list[dict[str, float]]) -> tuple[check.Measure, Iterator[Mapping[str, float]]]:
    left = iter(rounds)
    return lambda: next(left), left


def test_a_ratio_has_fallen_when_the_best_of_three_is_below_the_tolerance() -> None:
    measure, left = measuring([{"a": 8.0, "b": 1.0}, {}])
    assert check.fallen(KEPT, measure) == {}
    assert len(list(left)) == 1  # once is enough where all is well
    measure, left = measuring([{"a": 7.9, "b": 1.1}, {"a": 3.0, "b": 0.1}, {"a": 7.0, "b": 0.1}])
    assert check.fallen(KEPT, measure) == {"a": (7.9, pytest.approx(8.0))}
    assert not list(left)
    measure, _ = measuring([{"a": 1.0, "b": 1.0}, {"a": 9.0, "b": 0.2}])
    assert check.fallen(KEPT, measure) == {}


def test_a_ratio_that_is_not_measured_any_more_has_fallen() -> None:
    measure, _ = measuring([{"a": 10.0}] * 3)
    assert check.fallen(KEPT, measure) == {"b": (0.0, pytest.approx(1.0))}


def test_every_kept_ratio_is_of_a_bench_that_measures() -> None:
    entries = json.loads(check.RATIOS.read_text())
    assert entries
    assert set(entries) <= set(check.BENCHES)
    for bench, entry in entries.items():
        assert callable(importlib.import_module(f"tests.bench.bench_{bench}").ratios)
        for kept in entry["ratios"].values():
            assert kept["ratio"] > 0
            assert 0 < kept["tolerance"] <= 0.2


def test_a_fall_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entries = json.loads(check.RATIOS.read_text())
    kept = {name: entry["ratio"] for name, entry in entries["crops"]["ratios"].items()}
    monkeypatch.setattr(check, "measured", lambda bench: kept)
    assert check.main(["crops"]) == 0
    monkeypatch.setattr(check, "measured", lambda bench: {name: 0.7 * ratio for name, ratio in kept.items()})
    assert check.main(["crops"]) == 1
    assert "at least" in capsys.readouterr().out
