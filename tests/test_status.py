"""What `raydapt status` tells of a run that was stopped, is running, or is finished."""

import time
from pathlib import Path

import pytest

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.run.plan import make_plan
from raydapt.run.status import PROGRESS, NotedProgress, status
from raydapt.store.run_record import Run

LINE = {"round": 2, "epoch": 3, "step": 7, "loss": 0.51234, "images_per_s": 941.6}


@pytest.fixture
def record(tmp_path: Path) -> Run:
    """A run that was claimed, and stopped before anything was made."""
    places = [f"runs={tmp_path}/runs", f"store={tmp_path}/store", "name=job"]
    plan = make_plan(load_config(None, ["method=cpl", "data.source=digits", "data.limit=20", *places]))
    record = Run(plan.config.runs, plan.run_name)
    record.make()
    pipeline._claim(record, plan, overwrite=False)
    return record


def test_a_run_that_is_not_finished_tells_its_stages_and_its_training(
    record: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines = status(record.path).splitlines()
    assert lines[0] == "job: stopped; the same command goes on with it"
    assert lines[1].startswith("  stage     features ")
    assert lines[1].endswith(": to be made")  # the process that asks knows not where
    noted = NotedProgress(record, rounds=10, epochs=5)
    noted(LINE)
    noted({**LINE, "epoch": 4})  # too soon to be written down
    with record.lock():
        lines = status(record.path).splitlines()
        assert lines[0] == "job: running"
        assert lines[-1] == "  train     round 2 of 10, epoch 3 of 5, loss 0.5123, 942 images/s, 0 s ago"
    now[0] += 10
    noted({**LINE, "epoch": 5})  # two epochs in ten seconds, and forty to go
    assert status(record.path).endswith("round 2 of 10, epoch 5 of 5, loss 0.5123, 942 images/s, 03:20 left, 0 s ago")
    assert record.folder.held() is False
    record.remove(PROGRESS)
    assert "train" not in status(record.path)


def test_a_finished_run_tells_its_result(record: Run) -> None:
    record.write_json("metrics.json", {"seconds": 9.6, "zero_shot": {"top1": 81.5}, "adapted": {"top1": 90.25}})
    assert status(record.path).splitlines() == [
        "job: finished in 10 s: zero-shot 81.50 %, adapted 90.25 % (top-1)",
        f"Report: {record.file('report.html')}",
    ]


def test_what_is_no_run_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        status(str(tmp_path / "nothing"))
