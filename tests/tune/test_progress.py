"""What a sweep tells while its trials run: on the log, and to MLflow as a parent with its children."""

import logging
from pathlib import Path
from typing import Any

import pytest

from raydapt.methods.configuration import load_config
from raydapt.run.status import NotedProgress
from raydapt.run.tracking import tracked
from raydapt.store.run_record import Run
from raydapt.tune import progress as progress_
from raydapt.tune.progress import SweepProgress
from raydapt.tune.trials import TRIAL, Sweep

LINE = {"round": 1, "epoch": 3, "step": 7, "loss": 0.51234, "images_per_s": 941.6}


def sweep_of(tmp_path: Path, *words: str) -> tuple[Sweep, Run]:
    config = load_config(None, ["method=cpl", f"runs={tmp_path}/runs", *words])
    record = Run(config.runs, "sweep")
    record.make()
    return Sweep(config=config, folder=record.path, held_out={}, first_held_out=0), record


def test_the_log_hears_of_running_trials_of_those_that_are_over_and_of_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, _ = sweep_of(tmp_path)
    sweep.record("000").write_json(TRIAL, {})  # of an earlier session
    monkeypatch.setattr(progress_, "_EVERY_S", 0.0)
    with (
        caplog.at_level(logging.INFO, "raydapt"),
        SweepProgress(sweep, ["000", "001", "002"], {}, total=3) as told,
    ):
        NotedProgress(sweep.record("001"), rounds=10, epochs=5)(LINE)
        told.running(["001", "002"])
        told.over("001", 0.8125)
        told.over("002", None, failed=True)
    lines = [record.message for record in caplog.records]
    assert lines[0] == "tune: trial 001: round 1 of 10, epoch 3 of 5, loss 0.5123, 942 images/s, 0 s ago"
    assert lines[1] == "tune: 2/3 trials, trial 001: 0.812 mean label-free score"
    assert lines[2] == "tune: 3/3 trials, trial 002: it failed"
    assert lines[3].startswith("tune: 3/3 trials (100 %)")
    assert lines[3].endswith("1 failed")


def test_mlflow_sees_a_parent_and_a_child_for_every_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep, record = sweep_of(tmp_path, "track=[mlflow]")
    drawn = {"000": {"cpl.alpha": 0.5}, "001": {"cpl.alpha": 0.9}}
    with (
        tracked(sweep.config, record, sweep=True),
        SweepProgress(sweep, list(drawn), drawn, total=3, show=False) as told,
    ):
        for number in drawn:
            told.scored(number, {}, {"mean": 0.25}, 1)
            told.scored(number, {}, {"mean": 0.75}, 2)
        told.scored("abc", {"cpl.alpha": 0.1}, {"mean": 0.1}, 1)
        sweep.record("000").write_json(TRIAL, {"number": "000"})
        told.over("000", 0.75)
        told.over("001", None, failed=True)
        told.over("abc", 0.1)
    found = runs_of(tmp_path)
    parent = found.pop("sweep")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {name: run.data.params for name, run in found.items()} == {
        "sweep-000": {"cpl.alpha": "0.5"}, "sweep-001": {"cpl.alpha": "0.9"}, "sweep-abc": {"cpl.alpha": "0.1"},
    }  # fmt: skip
    assert found["sweep-000"].data.metrics == {"scores/mean": 0.75}
    assert found["sweep-001"].info.status == "FAILED"


def runs_of(tmp_path: Path) -> dict[str, Any]:
    """The runs of MLflow's file store, by name."""
    from mlflow import MlflowClient

    client = MlflowClient((tmp_path / "runs" / "mlruns").as_uri())
    runs = client.search_runs([client.get_experiment_by_name("raydapt").experiment_id])
    return {run.info.run_name: run for run in runs}
