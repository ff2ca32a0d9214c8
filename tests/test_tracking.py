"""Trackers by their own stores: MLflow's files and W&B's offline runs; and one that never answers."""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline, tracking
from raydapt.run.trackers import told
from raydapt.run.tracking import TRACKED, final_values, line_values

pytest.importorskip("mlflow")
pytest.importorskip("wandb")
EPOCHS = 3


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tracker of whoever runs the tests: neither variables nor a file of keys."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def run(tmp_path: Path, *words: str, name: str = "job") -> Path:
    given = ["method=fpl", "data.source=digits", "data.limit=60", f"train.epochs={EPOCHS}", "ray.progress=false"]
    places = [f"runs={tmp_path / 'runs'}", f"store={tmp_path / 'store'}", f"name={name}"]
    return Path(pipeline.run(load_config(None, [*given, *places, *words])).path)


def mlflow_runs(tmp_path: Path) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient((tmp_path / "runs" / "mlruns").as_uri())
    return client, list(client.search_runs([client.get_experiment_by_name("raydapt").experiment_id]))


def wandb_records(tmp_path: Path) -> dict[str, list[Any]]:
    """The records of the only offline run, by kind; W&B's own process may still be writing the last of them."""
    from wandb.proto import wandb_internal_pb2

    (file,) = (tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb")
    deadline, found = time.monotonic() + 30, dict[str, list[Any]]()
    while "exit" not in found and time.monotonic() < deadline:
        time.sleep(0.1)
        found.clear()
        for data in leveldb_records(file.read_bytes(), first=7):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
    return found


def leveldb_records(data: bytes, first: int) -> Iterator[bytes]:
    """The records of a log in LevelDB's format after so many bytes: blocks of 32 KiB, records in pieces."""
    at, whole = first, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


@pytest.mark.slow
def test_both_hear_of_every_epoch_of_the_end_and_of_the_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        folder = run(tmp_path, "track=[mlflow, wandb]")
    assert not [record for record in caplog.records if "track=" in record.message]
    assert not (folder / "tensorboard").exists()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((folder / "metrics.json").read_text())
    client, (found,) = mlflow_runs(tmp_path)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "job"
    assert found.data.params["train.epochs"] == str(EPOCHS)
    assert found.data.metrics["zero_shot/top1"] == pytest.approx(metrics["zero_shot"]["top1"])
    losses = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(entry.step, entry.value) for entry in losses] == [
        (line["epoch"], pytest.approx(line["loss"])) for line in lines
    ]
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {
        "config.yaml", "metrics.json", "report.html",
    }  # fmt: skip
    records = wandb_records(tmp_path)
    rows = [{item.nested_key[0] or item.key: item.value_json for item in row.item} for row in records["history"]]
    told_losses = [float(row["train/loss"]) for row in rows if "train/loss" in row]
    assert told_losses == pytest.approx([line["loss"] for line in lines])
    assert records["exit"][0].exit_code == 0
    assert json.loads((folder / TRACKED).read_text())["id"] == records["run"][0].run_id


@pytest.mark.slow
def test_a_run_that_is_taken_up_goes_on_in_the_same_place_and_one_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, "track=[mlflow]")
    _, (failed,) = mlflow_runs(tmp_path)
    assert failed.info.status == "FAILED"
    run(tmp_path, "track=[mlflow]")
    _, (found,) = mlflow_runs(tmp_path)
    assert found.info.run_id == failed.info.run_id
    assert found.info.status == "FINISHED"
    run(tmp_path, "track=[mlflow]", name="other")
    assert len(mlflow_runs(tmp_path)[1]) == 2


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
def test_a_server_that_never_answers_costs_a_warning(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    monkeypatch.setattr(tracking, "_PATIENCE_S", 0.5)
    with caplog.at_level(logging.WARNING):
        folder = run(tmp_path, "track=[tensorboard, mlflow]")
    assert (folder / "report.html").exists()
    assert list((folder / "tensorboard").iterdir())
    assert "track=mlflow does not answer within 0.5 s" in caplog.text


@pytest.mark.slow
def test_a_tracker_that_fails_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with caplog.at_level(logging.WARNING):
        folder = run(tmp_path, "track=[wandb]")
    assert (folder / "metrics.json").exists()
    assert "track=wandb failed" in caplog.text


def test_a_tracker_that_is_not_installed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"track=\[wandb\]: wandb is not installed: pip install 'raydapt\[wandb\]'"):
        run(tmp_path, "track=[wandb]")
    with pytest.raises(UserError, match="track"):
        run(tmp_path, "track=[clearml]")


def test_who_is_told_changes_no_fingerprint(tmp_path: Path) -> None:
    from raydapt.run.plan import make_plan

    words = ["method=fpl", "data.source=digits", "data.limit=60"]
    names = {make_plan(load_config(None, [*words, f"track=[{track}]"])).run_name for track in ("", "mlflow", "wandb")}
    assert len(names) == 1


def test_what_is_told() -> None:
    line = {"loss": 0.5, "learning_rate": 0.1, "images_per_s": None, "epoch": 1, "scores": {"mean": 0.7}}
    assert line_values(line) == {"train/loss": 0.5, "train/learning_rate": 0.1, "scores/mean": 0.7}
    assert final_values({"zero_shot": {"top1": 50.0}, "adapted": {"top1": None}, "seconds": 3}) == {
        "zero_shot/top1": 50.0, "seconds": 3.0,
    }  # fmt: skip
    assert told("http://me:secret@host/v1") == "http://host/v1"
    assert told("x" * 9999) == "x" * 500
