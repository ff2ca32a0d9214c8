import errno
import logging
import os
import random
import stat
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data

from raydapt.errors import UserError
from raydapt.progress import Progress
from raydapt.settings.groups import RaySettings
from raydapt.stages.run import Stage, run_stage, whole_parts
from raydapt.stages.through_ray import _after_start
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe

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


def test_actors_that_are_long_in_starting_are_told_and_no_batch_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raydapt.progress._SILENCE_S", 0.0)
    monkeypatch.setattr(logging.getLogger("raydapt"), "propagate", True)
    caplog.set_level(logging.INFO, "raydapt")
    stage, batches = stage_of({}, []), [table_of(result_rows(part, 2)) for part in range(3)]

    def slow() -> Iterator[pa.Table]:
        for _ in range(200):
            if caplog.messages:
                break
            threading.Event().wait(0.05)
        yield from batches

    assert list(_after_start(slow(), stage, 2)) == batches
    assert caplog.messages == ["starting 2 actors for values on Ray …"]
    assert list(_after_start(iter(()), stage, 1)) == []


def test_time_left_counts_from_the_work_on_the_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[float] = []

    class Told(Progress):
        def begun(self, ago_s: float) -> None:
            assert self.done == 0
            begun.append(ago_s)
            super().begun(ago_s)

    monkeypatch.setattr("raydapt.stages.run.Progress", Told)
    stage = replace(
        stage_of({0: (4, []), 1: (3, []), 2: (3, [])}, []),
        dataset_of=None,
        here=lambda pending: ((part, table_of(result_rows(part, 4 if part == 0 else 3))) for part in pending),
    )
    assert run_stage(Store(str(tmp_path)), stage).artefact.manifest.rows == 10
    assert begun == [pytest.approx(0.001 * 4)]  # what the rows of the first part say that the model took


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


@contextmanager
def storage_that_refuses(code: int) -> Iterator[Callable[[], None]]:
    """Every write of a part's bytes fails from the second part on, until what is yielded is called."""
    flush, written = os.fsync, []

    def refuse(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):  # a folder is flushed besides
            written.append(handle)
            if len(written) > 1:
                raise OSError(code, os.strerror(code))
        flush(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raydapt.store.folder.os.fsync", refuse)
        yield patch.undo


@contextmanager
def mounted_storage(folder: Path, options: str, after: str) -> Iterator[Callable[[], None]]:
    """A real small file system; calling what is yielded mounts it anew with the options `after`."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs rights that this process lacks")
    try:
        yield lambda: subprocess.run(["mount", "-o", f"remount,{after}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda _: storage_that_refuses(errno.ENOSPC), "is full"),
        (lambda _: storage_that_refuses(errno.EROFS), "Read-only file system"),
        (lambda folder: mounted_storage(folder, "size=24k", "size=1m"), "is full"),
        (lambda folder: mounted_storage(folder, "ro,size=1m", "rw"), "Read-only file system"),
    ],
    ids=["full, injected", "read-only, injected", "full", "read-only"],
)
def test_a_store_that_refuses_is_one_sentence_and_the_rest_is_made_later(
    tmp_path: Path, fault: Callable[[Path], AbstractContextManager[Callable[[], None]]], words: str
) -> None:
    parts: dict[int, tuple[int, Sequence[int]]] = dict.fromkeys(range(8), (3, ()))
    expected = run_stage(Store(str(tmp_path / "other")), stage_of(parts, [])).artefact.manifest.shards
    folder, seen = tmp_path / "store", []
    with fault(folder) as mend:
        with pytest.raises(UserError, match=words) as caught:
            run_stage(Store(str(folder)), stage_of(parts, seen))
        assert "store=" in str(caught.value)
        assert "\n" not in str(caught.value)
        kept = {path.name: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")}
        assert not list(folder.rglob(".tmp-*"))
        assert not list(folder.rglob("manifest.json"))
        mend()
        result = run_stage(Store(str(folder)), stage_of(parts, seen))
        assert result.artefact.manifest.shards == expected
        assert seen[-1] == [part for part in parts if f"part-{part:05d}.parquet" not in kept]
        assert {path.name: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")}.items() >= kept.items()


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
def test_of_two_drivers_the_second_waits_and_finds_everything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, let_go = threading.Event(), threading.Event()
    seen: list[list[int]] = []
    stage = stage_of({0: (3, ()), 1: (2, ())}, seen)

    def slow(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        begun.set()
        assert let_go.wait(60)
        return stage.dataset_of(pending)

    results = {}

    def first() -> None:
        results["first"] = run_stage(Store(str(tmp_path)), replace(stage, dataset_of=slow))

    def second() -> None:
        results["second"] = run_stage(Store(str(tmp_path)), stage)

    drivers = [threading.Thread(target=first), threading.Thread(target=second)]
    drivers[0].start()
    assert begun.wait(60)
    drivers[1].start()
    drivers[1].join(0.5)
    assert "second" not in results
    let_go.set()
    for driver in drivers:
        driver.join(60)
    assert not results["first"].reused
    assert results["second"].reused
    assert seen == [[0, 1]]
    assert "waiting for another raydapt process" in capfd.readouterr().err


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
    monkeypatch.setattr("raydapt.stages.through_ray.ensure_ray", None)
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


def test_parts_that_were_made_before_the_maker_gave_up_are_kept(tmp_path: Path) -> None:
    recipe, asked = Recipe(kind="captions", settings={}, inputs=()), []

    def stage(*, gives_up_at: int | None) -> Stage:
        def make(pending: Sequence[int]) -> Generator[tuple[int, pa.Table], None, None]:
            asked.append(list(pending))
            for_part = {part: result_rows(part, 3) for part in pending}
            for part in pending:
                if gives_up_at is not None and part >= gives_up_at:
                    for_part[part][1]["error"] = "stopped: The server is gone: start it."
            yield from ((part, table_of(rows)) for part, rows in for_part.items())

        return Stage(
            recipe=recipe, parts=range(5), dataset_of=None, here=make, rows=15, max_error_share=0.0, ray=SETTINGS
        )

    with pytest.raises(UserError, match=r"^The server is gone: start it\.$"):
        run_stage(Store(str(tmp_path)), stage(gives_up_at=2))
    result = run_stage(Store(str(tmp_path)), stage(gives_up_at=None))
    assert asked == [[0, 1, 2, 3, 4], [2, 3, 4]]
    assert result.artefact.manifest.rows == 15
