import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data
from ray.data import ActorPoolStrategy

from raydapt.errors import UserError
from raydapt.settings.groups import RaySettings
from raydapt.stages import through_ray
from raydapt.stages.commit import COMMITTED, PART, Committed, commit_part, committed_row, committing
from raydapt.stages.run import Stage, run_stage
from raydapt.store.artefact import Artefact, Store
from raydapt.store.fingerprint import Recipe
from tests.stages.test_run import SETTINGS, mounted_storage, result_rows, table_of

PARTS, ROWS = 8, 30
RECIPE = Recipe(kind="values", settings={}, inputs=("x",))


class Maker:
    """Makes the part of a number, with its third row in error; notes each time in a file, where there is one."""

    def __init__(self, notes: Path | None = None, kills: Path | None = None) -> None:
        self._notes = notes
        if kills is not None:
            die_before_rename(kills)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        part = int(batch[PART][0])
        if self._notes:
            with self._notes.open("a") as file:
                file.write(f"{part}\n")
        return table_of(result_rows(part, ROWS, bad=(2,)))


def die_before_rename(kills: Path) -> None:
    """Kills this process when the data of a part is on the disk and its name is not: once over all processes."""
    flush = os.fsync

    def flush_and_die(handle: int) -> None:
        flush(handle)
        if not kills.exists():
            kills.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = flush_and_die


def stage_of_actors(store: Store, *arguments: Any, settings: RaySettings = SETTINGS, in_actors: bool = True) -> Stage:
    """A stage whose actors commit, or hand their rows to the driver."""

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        numbers = ray.data.from_items([{PART: part} for part in pending], override_num_blocks=len(pending))
        maker = committing(Maker, store.artefact_of(RECIPE)) if in_actors else Maker
        compute = ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=2)
        return numbers.map_batches(maker, fn_constructor_args=arguments, batch_size=1, compute=compute, num_cpus=0.5), 2

    return Stage(
        recipe=RECIPE, parts=range(PARTS), dataset_of=dataset_of, rows=PARTS * ROWS, max_error_share=0.1, ray=settings
    )


def expected_shards(folder: Path) -> list[Any]:
    """The shards as this process makes them without Ray."""
    stage = Stage(
        recipe=RECIPE,
        parts=range(PARTS),
        dataset_of=None,
        here=lambda pending: ((part, table_of(result_rows(part, ROWS, bad=(2,)))) for part in pending),
        rows=PARTS * ROWS,
        max_error_share=0.1,
        ray=SETTINGS,
    )
    return run_stage(Store(str(folder)), stage).artefact.manifest.shards


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_actors_commit_what_the_driver_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[pa.Table] = []
    commits = through_ray._commits
    monkeypatch.setattr(
        through_ray,
        "_commits",
        lambda batches, artefact: commits((told.append(batch) or batch for batch in batches), artefact),
    )
    shards = expected_shards(tmp_path / "here")
    for in_actors in (True, False):
        store, told[:] = Store(str(tmp_path / str(in_actors))), []
        manifest = run_stage(store, stage_of_actors(store, in_actors=in_actors)).artefact.manifest
        assert manifest.shards == shards
        assert manifest.errors == {"corrupt": PARTS}
        assert manifest.stats["model_seconds"] == pytest.approx(0.001 * PARTS * ROWS)
        assert {name for table in told for name in table.column_names if table.num_rows} >= (
            {COMMITTED} if in_actors else {"value"}
        )
        assert ("value" in {name for table in told for name in table.column_names}) != in_actors


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_killed_between_data_and_rename_loses_and_doubles_nothing(tmp_path: Path) -> None:
    shards, kills, notes = expected_shards(tmp_path / "here"), tmp_path / "killed", tmp_path / "notes"
    store = Store(str(tmp_path / "store"))
    artefact = run_stage(store, stage_of_actors(store, notes, kills)).artefact
    assert kills.exists()
    assert len(notes.read_text().split()) > PARTS  # what the dead one had made was made again
    assert artefact.manifest.shards == shards
    assert sorted(artefact.read()["row"].to_pylist()) == [1000 * part + k for part in range(PARTS) for k in range(ROWS)]
    assert not list((tmp_path / "store").rglob(".tmp-*"))


def commit_many(folder: str, times: int) -> set[tuple[str, int]]:
    """What a worker does that is not the only one at a part."""
    artefact = Store(folder).artefact_of(RECIPE)
    told = [commit_part(artefact, 0, table_of(result_rows(0, 2000, bad=(5,)))) for _ in range(times)]
    return {(each.shard.sha256, each.shard.bytes) for each in told if each.shard}


@pytest.mark.slow
def test_workers_at_the_same_part_at_once_leave_one_whole_shard(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as workers:
        told = set[tuple[str, int]]().union(*workers.map(commit_many, [str(tmp_path)] * 3, [40] * 3))
    assert len(told) == 1
    artefact = Store(str(tmp_path)).artefact_of(RECIPE)
    assert set(artefact.folder.sizes()) == {"part-00000.parquet"}
    assert artefact.committed_parts() == {0}
    assert artefact.committed_rows() == 2000
    assert artefact.committed_errors() == {"corrupt": 1}


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
def test_a_full_disk_under_the_workers_is_one_sentence_and_the_rest_is_made_later(tmp_path: Path) -> None:
    shards, notes, folder = expected_shards(tmp_path / "here"), tmp_path / "notes", tmp_path / "store"
    with mounted_storage(folder, "size=24k", "size=1m") as mend:
        store = Store(str(folder))
        with pytest.raises(UserError, match="is full") as caught:
            run_stage(store, stage_of_actors(store))
        assert "store=" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(folder.rglob("manifest.json"))
        mend()
        kept = len(store.artefact_of(RECIPE).committed_parts())
        assert 0 < kept < PARTS
        assert run_stage(store, stage_of_actors(store, notes)).artefact.manifest.shards == shards
        assert len(notes.read_text().split()) == PARTS - kept


def test_parts_that_another_place_took_are_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydapt.store.artefact._LATE_S", 0.0)
    here, there = (Store(str(tmp_path / name)).artefact_of(RECIPE) for name in ("here", "there"))
    for part, artefact in ((0, here), (1, there)):  # as where a node has a folder of its own under that name
        told = commit_part(artefact, part, table_of(result_rows(part, ROWS)))
        assert told.shard is not None
        here.note_part(told.shard)
    with pytest.raises(UserError, match=r"1 of 2 parts .* 'part-00001.parquet'"):
        here.finish(RECIPE, [0, 1], {}, {})
    assert here.find_manifest() is None


def test_what_is_told_and_what_is_not(tmp_path: Path) -> None:
    artefact = Store(str(tmp_path)).artefact_of(RECIPE)
    rows = result_rows(3, 5, bad=(1, 4))
    told = commit_part(artefact, 3, table_of(rows[::-1]))
    assert replace(told, shard=None) == Committed(part=3, example="3/4.png", model_s=pytest.approx(0.005))
    assert told.shard is not None
    assert (told.shard.rows, told.shard.errors) == (5, {"corrupt": 2})
    stored = pa.parquet.read_table(tmp_path / "values" / RECIPE.fingerprint / "part-00003.parquet")
    assert stored.to_pylist() == [{name: row[name] for name in ("row", "path", "error", "value")} for row in rows]
    rows[1]["error"] = "stopped: The server is gone."
    assert commit_part(artefact, 4, table_of(rows)) == Committed(part=4, stopped="The server is gone.")
    assert "part-00004.parquet" not in artefact.folder.sizes()
    assert committed_row(artefact, table_of([])).num_rows == 0
    in_memory = Artefact(Store("memory://commit").artefact_of(RECIPE).folder, "values", RECIPE.fingerprint)
    assert committed_row(in_memory, table_of(rows)).equals(table_of(rows))  # the driver gathers and commits
