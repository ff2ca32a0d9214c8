"""A driver killed with SIGKILL: the same command again finishes, repeats nothing that was kept, and ends the same.

The undisturbed run is made in this process, which spares a start of Ray.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from raydapt.methods.configuration import load_config
from raydapt.run import pipeline

ROOT = Path(__file__).parents[1]
WAIT_S = 240
JOB = [
    *("method=cpl", "name=job", "ray.address=local", "features.rows_per_part=200", "features.actors=1"),
    *("train.epochs=6", "cpl.rounds=3", "train.max_steps_per_round=60", "train.checkpoint_every_s=0"),
]

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


def places(folder: Path) -> list[str]:
    return [f"runs={folder}/runs", f"store={folder}/store"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", "raydapt.cli", "run", *JOB, *places(folder)]
    # A group of its own, so that the whole cluster of the killed driver can be taken down with it.
    return subprocess.Popen(command, env=environment, process_group=0)


def kill_when(folder: Path, condition: Callable[[], bool]) -> None:
    driver = start(folder)
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def metrics(folder: Path) -> dict:
    return json.loads((folder / "runs" / "job" / "metrics.json").read_text())


def features_manifest(folder: Path) -> dict:
    (manifest,) = (folder / "store").rglob("manifest.json")
    return json.loads(manifest.read_text())


def shards(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "store").rglob("part-*.parquet")}


def weights(folder: Path) -> dict:
    tensors = load_file(folder / "runs" / "job" / "checkpoint" / "state.safetensors")
    return {key: tensor.tolist() for key, tensor in tensors.items() if key.startswith("method.")}


def test_killed_in_features_and_in_training(tmp_path: Path, ray_cluster: None) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    pipeline.run(load_config(None, [*JOB, *places(undisturbed)]))

    kill_when(killed, lambda: len(shards(killed)) >= 2)
    kept = shards(killed)
    assert not (killed / "runs" / "job" / "metrics.json").exists()

    checkpoint = killed / "runs" / "job" / "checkpoint" / "state.safetensors"
    kill_when(killed, lambda: checkpoint.exists() and checkpoint.stat().st_size > 0)
    assert {name: when for name, when in shards(killed).items() if name in kept} == kept
    assert not (killed / "runs" / "job" / "metrics.json").exists()
    made = features_manifest(killed)
    # Actors may write a part more in the moment before they miss their driver.
    assert made["stats"]["rows_reused"] >= sum(shard["rows"] for shard in made["shards"] if shard["name"] in kept)
    assert made["shards"] == features_manifest(undisturbed)["shards"]  # byte by byte, by their checksums

    assert start(killed).wait(WAIT_S) == 0
    expected, found = metrics(undisturbed), metrics(killed)
    assert found["stages"]["features"]["reused"]
    for part in ("zero_shot", "adapted", "rounds", "pseudo_labels"):
        assert found[part] == expected[part]
    assert weights(killed) == weights(undisturbed)
    lines = (killed / "runs" / "job" / "metrics.jsonl").read_text().splitlines()
    steps = [(json.loads(line)["round"], json.loads(line)["step"]) for line in lines]
    assert len(set(steps)) == len(steps)
