"""Sweeps on Ray Tune: a kill and a restore, a scheduler, nested training that must not begin."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.tune import sweep as sweep_
from tests.tune.cases import digits, job
from tests.tune.test_progress import runs_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRIVER = "import sys; from raydapt.cli import main; sys.argv = ['raydapt', *sys.argv[1:]]; main()"


def drive(config_path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DRIVER, "tune", str(config_path)], start_new_session=True)


@pytest.mark.chaos
def test_killed_and_started_again_gives_every_trial_once(tmp_path: Path) -> None:
    import yaml

    from raydapt.settings.tree import as_tree

    config = job(tmp_path, digits(tmp_path / "digits.parquet"), tune={"trials": 6}, name="sweep")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(as_tree(config)))
    trials = tmp_path / "runs" / "sweep" / "trials"
    driver = drive(tmp_path / "job.yaml")
    while len(list(trials.glob("*/trial.json"))) < 2 and driver.poll() is None:
        time.sleep(0.2)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    done = {path: path.stat().st_mtime_ns for path in trials.glob("*/trial.json")}
    assert 2 <= len(done) < 6
    assert drive(tmp_path / "job.yaml").wait() == 0
    result = sweep_.Run(str(tmp_path / "runs"), "sweep").read_json("tune.json")
    assert sorted(trial["number"] for trial in result["trials"]) == [*(f"{i:03d}" for i in range(6)), "zero-shot"]
    assert len({repr(trial["settings"]) for trial in result["trials"]}) == 7
    assert all(trial["state"] == "finished" for trial in result["trials"])
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert load_config(tmp_path / "runs" / "sweep" / "chosen.yaml").method in ("cpl", "zero_shot")


@pytest.mark.usefixtures("ray_cluster")
def test_optuna_with_a_scheduler_scores_every_epoch_of_a_single_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "method": "fpl",
        "fpl": {"shots": 4},
        "train": {"epochs": 3, "max_steps_per_round": None},
        "space": {"train.learning_rate": {"loguniform": [0.01, 1.0]}},
        "tune": {"search": "optuna", "scheduler": "asha", "trials": 4, "grace": 1},
    }
    track = ["mlflow"] if importlib.util.find_spec("mlflow") else []
    config = job(tmp_path, digits(tmp_path / "digits.parquet"), name="sweep", track=track, **settings)
    with caplog.at_level("INFO", "raydapt"):
        assert "trials finished" in sweep_.tune(config)
    assert "tune: 4/4 trials" in caplog.text
    assert capfd.readouterr().out == ""  # Ray Tune tells of its own in boxes
    if track:
        parent, children = parent_and_children(runs_of(tmp_path))
        assert parent.info.status == "FINISHED"
        assert len(children) == 4
        assert all("scores/mean" in child.data.metrics for child in children)
        assert len({child.data.params["train.learning_rate"] for child in children}) == 4
    result = sweep_.Run(str(tmp_path / "runs"), "sweep").read_json("tune.json")
    *drawn, unadapted = result["trials"]
    assert unadapted["number"] == "zero-shot"
    assert len(drawn) == 4
    assert {trial["state"] for trial in result["trials"]} <= {"finished", "stopped"}
    rates = {trial["settings"]["train.learning_rate"] for trial in drawn}
    assert len(rates) == 4


def parent_and_children(runs: dict[str, Any]) -> tuple[Any, list[Any]]:
    parent = runs.pop("sweep")
    return parent, [run for run in runs.values() if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]


@pytest.mark.usefixtures("ray_cluster")
def test_nested_training_is_refused_where_nothing_would_clean_up_behind_it(tmp_path: Path) -> None:
    config = job(tmp_path, digits(tmp_path / "digits.parquet"), train={"workers": 1})
    with pytest.raises(UserError, match="dashboard"):
        sweep_.tune(config)
