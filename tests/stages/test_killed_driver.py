"""A driver that is killed half-way: the same command makes the rest, and nothing twice."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from raydapt.config import DataSettings, RaySettings, StageSettings
from raydapt.data.sources import resolve_source
from raydapt.models.clip import clip_identity, load_clip
from raydapt.stages.context import ActorPlan
from raydapt.stages.features import Encoder, features_stage
from raydapt.stages.reading import read_and_decode
from raydapt.stages.run import MODEL_S, PART, PART_ROWS, StageResult, whole_parts
from raydapt.workspace import Artefact, Shard, Store
from tests.stages.images import write_images

ROWS, ROWS_PER_PART, COMMITS = 200, 16, 4


def run_features(images: Path, store: Path) -> StageResult:
    return features_stage(
        resolve_source(str(images), rows_per_part=ROWS_PER_PART),
        clip_name="mini",
        clip_identity=clip_identity("mini"),
        image_spec=load_clip("mini").image_spec,
        settings=StageSettings(rows_per_part=ROWS_PER_PART, actors=1),
        data=DataSettings(),
        ray_settings=RaySettings(address="local", cpus=2, progress=False),
        store=Store(str(store)),
    )


def undisturbed_shards(images: Path, store: Path) -> list[Shard]:
    """The same parts made one after the other in this process, without Ray."""
    encoder = Encoder("mini", clip_identity("mini"), StageSettings().batch_size, ActorPlan(actors=1, cpus=1, gpus=0))
    artefact = Store(str(store)).artefact("features", "0" * 16)
    decode = {"data": DataSettings(), "spec": load_clip("mini").image_spec, "packed": True}
    shards = []
    for part in resolve_source(str(images), rows_per_part=ROWS_PER_PART).parts:
        (packed,) = read_and_decode(pa.table({"parts": [pickle.dumps((part,))]}), **decode)
        ((_, table),) = whole_parts([encoder(packed)])
        shards.append(artefact.commit_part(part.index, table.drop_columns([PART, PART_ROWS, MODEL_S])))
    return shards


def die_after_commits(images: Path, store: Path) -> None:
    """The driver that is killed: run in a process of its own."""
    commit, done = Artefact.commit_part, []

    def commit_then_die(self: Artefact, *args: object, **kwargs: object) -> None:
        commit(self, *args, **kwargs)  # type: ignore[arg-type]
        done.append(args)
        if len(done) == COMMITS:
            os.kill(os.getpid(), signal.SIGKILL)

    Artefact.commit_part = commit_then_die  # type: ignore[assignment,method-assign]
    run_features(images, store)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.slow
def test_killed_driver_is_taken_up(tmp_path: Path, ray_cluster: None) -> None:
    images, store = write_images(tmp_path / "a.parquet", ROWS), tmp_path / "store"
    command = [sys.executable, "-m", "tests.stages.test_killed_driver", str(images), str(store)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    shards = {path: path.stat().st_mtime_ns for path in store.rglob("part-*.parquet")}
    assert len(shards) == COMMITS
    result = run_features(images, store)
    stats = result.artefact.manifest.stats
    assert not result.reused
    assert stats["rows_reused"] == COMMITS * ROWS_PER_PART
    assert stats["rows_computed"] == ROWS - COMMITS * ROWS_PER_PART
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert result.artefact.manifest.shards == undisturbed_shards(images, tmp_path / "other")


if __name__ == "__main__":
    die_after_commits(Path(sys.argv[1]), Path(sys.argv[2]))
