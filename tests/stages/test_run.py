import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data

from raydapt.config import RaySettings
from raydapt.errors import UserError
from raydapt.stages.run import Stage, run_stage, whole_parts
from raydapt.workspace import Recipe, Store

SETTINGS = RaySettings(address="local", cpus=4, progress=False)


def result_rows(part: int, rows: int, bad: Sequence[int] = ()) -> list[dict[str, object]]:
    return [
        {
            "part": part,
            "part_rows": rows,
            "model_s": 0.001,
            "row": 1000 * part + k,
            "path": f"{part}/{k}.png",
            "error": "corrupt" if k in bad else None,
            "value": float(k),
        }
        for k in range(rows)
    ]


SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("part_rows", pa.int64()),
        ("model_s", pa.float64()),
        ("row", pa.int64()),
        ("path", pa.string()),
        ("error", pa.string()),
        ("value", pa.float64()),
    ]
)


def table_of(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_whole_parts_from_rows_in_any_order() -> None:
    rows = [row for part, count in ((0, 5), (1, 1), (2, 9)) for row in result_rows(part, count)]
    random.Random(0).shuffle(rows)
    pieces = [table_of(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    found = dict(whole_parts(iter(pieces)))
    assert {part: table["row"].to_pylist() for part, table in found.items()} == {
        part: [1000 * part + k for k in range(count)] for part, count in ((0, 5), (1, 1), (2, 9))
    }


def test_a_part_that_never_ends_is_an_error() -> None:
    rows = result_rows(0, 5)[:4]
    with pytest.raises(RuntimeError, match="1 parts unfinished"):
        list(whole_parts(iter([table_of(rows)])))


def stage_of(
    parts: dict[int, tuple[int, Sequence[int]]], seen: list[list[int]], *, share: float = 0.0, known: bool = True
) -> Stage:
    """A stage over `parts`: number -> (rows, rows in error); `seen` notes which parts were asked for."""

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        seen.append(list(pending))
        tables = [table_of(result_rows(part, *parts[part])) for part in pending]
        return ray.data.from_arrow(tables), 1

    rows = sum(count for count, _ in parts.values())
    return Stage(
        recipe=Recipe(kind="values", settings={}, inputs=("x",)),
        parts=list(parts),
        dataset_of=dataset_of,
        rows=rows if known else None,
        max_error_share=share,
        ray=SETTINGS,
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_stage_is_made_once(tmp_path: Path) -> None:
    store, seen = Store(str(tmp_path)), []
    stage = stage_of({0: (3, ()), 1: (2, ()), 2: (0, ())}, seen)
    result = run_stage(store, stage)
    assert not result.reused
    assert result.artefact.read().drop_columns(["path"]).to_pydict() == {
        "row": [0, 1, 2, 1000, 1001],
        "error": [None] * 5,
        "value": [0.0, 1.0, 2.0, 0.0, 1.0],
    }
    stats = result.artefact.manifest.stats
    assert (stats["rows"], stats["rows_computed"], stats["rows_reused"]) == (5, 5, 0)
    assert stats["model_seconds"] == pytest.approx(0.005)
    assert run_stage(store, stage).reused
    assert seen == [[0, 1, 2]]


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("damage", ["truncated shard", "deleted manifest", "both"])
def test_only_what_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    store, seen = Store(str(tmp_path)), []
    stage = stage_of(dict.fromkeys(range(4), (3, ())), seen)
    artefact = run_stage(store, stage).artefact
    before = artefact.manifest
    if damage != "deleted manifest":
        artefact.folder.write("part-00002.parquet", artefact.folder.read("part-00002.parquet")[:-1])
    if damage != "truncated shard":
        artefact.folder.remove("manifest.json")
    again = run_stage(store, stage)
    assert not again.reused
    assert again.artefact.manifest.shards == before.shards
    assert seen[1:] == ([] if damage == "deleted manifest" else [[2]])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("known", [True, False])
def test_too_many_errors_stop_the_stage_and_lose_nothing(tmp_path: Path, known: bool) -> None:
    store, seen = Store(str(tmp_path)), []
    parts = {0: (50, (7,)), 1: (50, (3,))}
    with pytest.raises(UserError, match="2 of 100 images") as caught:
        run_stage(store, stage_of(parts, seen, share=0.01, known=known))
    message = str(caught.value)
    assert "'corrupt'" in message
    assert ".png'" in message
    assert "data.max_error_share=0.01" in message
    result = run_stage(store, stage_of(parts, seen, share=0.02, known=known))
    assert seen == [[0, 1]]
    assert result.artefact.manifest.errors == {"corrupt": 2}
    assert result.artefact.manifest.stats["rows_reused"] == 100
    with pytest.raises(UserError, match="2 of 100 images"):  # the stored artefact is held to the setting as well
        run_stage(store, stage_of(parts, seen, share=0.01, known=known))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_hopeless_stage_stops_early(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    parts: dict[int, tuple[int, Sequence[int]]] = {part: (10, range(10)) for part in range(20)}
    with pytest.raises(UserError, match=r"10 of 200 images|20 of 200 images"):
        run_stage(store, stage_of(parts, [], share=0.01))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_tell_mistakes_of_the_user_in_one_sentence(tmp_path: Path) -> None:
    def fail(batch: pa.Table) -> pa.Table:
        raise UserError("Setting model.clip='x' is not there: give another one.")

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        rows = ray.data.from_arrow(table_of(result_rows(0, 3)))
        return rows.map_batches(fail, batch_format="pyarrow"), 1

    stage = replace(stage_of({0: (3, ())}, []), dataset_of=dataset_of)
    with pytest.raises(UserError) as caught:
        run_stage(Store(str(tmp_path)), stage)
    assert str(caught.value) == "Setting model.clip='x' is not there: give another one."


def test_finished_stage_needs_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, stage = Store(str(tmp_path)), stage_of({0: (3, ())}, [])
    artefact = store.artefact_of(stage.recipe)
    artefact.commit_part(0, pa.table({"row": [0, 1, 2]}))
    monkeypatch.setattr("raydapt.stages.run.ensure_ray", None)
    assert not run_stage(store, stage).reused
    assert run_stage(store, stage).reused


def test_memory_of_the_driver_holds_unfinished_parts_alone() -> None:
    def pieces() -> Iterator[pa.Table]:
        for part in range(50):
            yield table_of(result_rows(part, 100))

    held: list[int] = []
    base = pa.total_allocated_bytes()
    for _part, table in whole_parts(pieces()):
        del table
        held.append(pa.total_allocated_bytes() - base)
    assert max(held[10:]) <= 2 * max(held[:10])
