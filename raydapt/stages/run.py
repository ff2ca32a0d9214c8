"""Running a stage: Ray Data makes rows, the driver commits them part by part.

Any stage goes through `run_stage`. What is committed is never made again; what is not is invisible. The driver holds
the rows of unfinished parts alone.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from raydapt.cluster.joining import ensure_ray, require_shared
from raydapt.data.sources import Source
from raydapt.errors import UserError
from raydapt.progress import Progress
from raydapt.settings.groups import RaySettings
from raydapt.stages.context import StageContext, configure
from raydapt.stages.metrics import StageMetrics
from raydapt.store.artefact import Artefact, StageResult, Store
from raydapt.store.environment import versions
from raydapt.store.fingerprint import Recipe

PART, PART_ROWS, MODEL_S = "part", "part_rows", "model_s"
"""Columns that a result row carries for the driver: its part, how many rows that part has, and the seconds that its
share of the model's work took (optional). They are not stored."""
STOPPED = "stopped: "
"""Begins the error of a row that was not made because its maker gave up; what follows is the sentence for the user."""
_USER_ERROR = re.compile(r"raydapt\.errors\.UserError: (.+)")


MakeRows = Callable[[Sequence[int]], tuple[ray.data.Dataset | Iterator[tuple[int, pa.Table]], int]]
"""Builds the result rows of the given parts, and tells how many actors that takes; see `Stage`."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage to be run.

    Attributes:
        recipe: What the artefact depends on.
        parts: Numbers of all its parts.
        dataset_of: Builds the Ray Dataset of result rows of the given parts, and tells how many actors it uses. Its
            rows have the columns `PART`, `PART_ROWS`, ``row`` (order within the part), ``path`` and ``error``. Or, for
            what is no work at all, an iterator of whole parts with their numbers, made here without Ray.
        rows: Rows of all parts together, where known.
        max_error_share: Largest share of rows in error.
        ray: The cluster and whether to show progress.
        unit: What a row is, for people.
        grows: Whether the artefact may hold more or fewer parts than are asked for; those that are missing are added.
        uses_ray: Whether `dataset_of` needs a cluster.
    """

    recipe: Recipe
    parts: Sequence[int]
    dataset_of: MakeRows
    rows: int | None
    max_error_share: float
    ray: RaySettings
    unit: str = "images"
    grows: bool = False
    uses_ray: bool = True


@dataclass
class _Tally:
    """What this session has done; ``startup_s`` ends when the first part, of ``startup_rows`` rows, is there."""

    rows: int = 0
    model_s: float = 0.0
    actors: int = 0
    started: float = field(default_factory=time.monotonic)
    startup_s: float = 0.0
    startup_rows: int = 0
    example: str = ""

    def stats(self, rows: int) -> dict[str, Any]:
        seconds = time.monotonic() - self.started
        share = self.model_s / (seconds * self.actors) if self.actors else 0.0
        return {
            "seconds": round(seconds, 3),
            "startup_seconds": round(self.startup_s, 3),
            "startup_rows": self.startup_rows,
            "rows": rows,
            "rows_computed": self.rows,
            "rows_reused": rows - self.rows,
            "rows_per_s": round(self.rows / seconds, 3),
            "model_seconds": round(self.model_s, 3),
            "model_share": round(share, 4),
            "actors": self.actors,
        }


def stage_of_images(source: Source, context: StageContext, recipe: Recipe, dataset_of: MakeRows) -> Stage:
    """A stage that makes one row of each image of a source."""
    return Stage(
        recipe=recipe,
        parts=[part.index for part in source.parts],
        dataset_of=dataset_of,
        rows=source.rows,
        max_error_share=context.data.max_error_share,
        ray=context.ray,
    )


def run_stage(store: Store, stage: Stage) -> StageResult:
    """Makes the artefact, or what is missing of it; does nothing, and needs no Ray, when it is there already.

    Raises:
        UserError: If the storage refuses, or if more rows than ``max_error_share`` are in error. What has been
            committed stays: the same command with a higher share takes it up.
    """
    artefact = store.artefact_of(stage.recipe)
    if _done(artefact, stage):
        _check_errors(stage, artefact.manifest.errors, artefact.manifest.rows, artefact, "")
        return StageResult(artefact=artefact, reused=True)
    with artefact.lock():
        if _done(artefact, stage):  # another process made it while this one waited for the lock
            _check_errors(stage, artefact.manifest.errors, artefact.manifest.rows, artefact, "")
            return StageResult(artefact=artefact, reused=True)
        tally = _Tally()
        present = artefact.committed_parts() & set(stage.parts)
        pending = [part for part in stage.parts if part not in present]
        empty = _make(artefact, stage, pending, tally) if pending else set()
        rows = artefact.committed_rows()
        _check_errors(stage, artefact.committed_errors(), rows, artefact, tally.example)
        parts = artefact.committed_parts() if stage.grows else set(stage.parts) - empty
        artefact.finish(stage.recipe, parts, tally.stats(rows), versions())
    return StageResult(artefact=artefact, reused=False)


def _done(artefact: Artefact, stage: Stage) -> bool:
    """Whether nothing is to be made: the artefact is finished, and as large as is asked for."""
    if not artefact.complete():
        return False
    return not stage.grows or set(stage.parts) <= {shard.part for shard in artefact.manifest.shards}


def _make(artefact: Artefact, stage: Stage, pending: Sequence[int], tally: _Tally) -> set[int]:
    """Computes and commits the pending parts; returns those that turned out to have no rows."""
    if stage.uses_ray:
        ensure_ray(stage.ray)
        require_shared(artefact.folder.url, setting="store")
        configure()
    dataset, tally.actors = stage.dataset_of(pending)
    failed = sum(artefact.committed_errors().values())
    progress = Progress(
        stage.recipe.kind,
        total=stage.rows,
        unit=stage.unit,
        show=stage.ray.progress,
        done=artefact.committed_rows(),
        failed=failed,
    )
    metrics = StageMetrics(stage.recipe.kind)
    unseen, given_up = set(pending), ""
    try:
        for part, table in _parts(dataset):
            unseen.discard(part)
            if reason := _reason_of_stop(table):
                given_up = given_up or reason
                continue  # other parts were whole before, and are kept
            errors = _commit(artefact, part, table, tally, progress)
            metrics.add(table.num_rows, errors, time.monotonic() - tally.started)
            if stage.rows and progress.failed > stage.max_error_share * stage.rows:
                break  # no need to read on, it is sure already that too many rows are bad
    except ExecutionTimeoutError as error:
        patience = ray.data.DataContext.get_current().execution_no_progress_timeout_s
        raise UserError(
            f"The stage {stage.recipe.kind} stood still for {patience:g} s, as when nodes are lost for good: "
            "start nodes and run the same command again, what was committed is kept."
        ) from error
    except RayError as error:
        # What a worker raises arrives as text within Ray's own errors; a mistake of the user stays one sentence.
        if sentence := _USER_ERROR.search(str(error)):
            raise UserError(sentence[1]) from error
        raise
    finally:
        progress.close()
    if given_up:
        raise UserError(given_up)
    return unseen


def _reason_of_stop(table: pa.Table) -> str:
    """Why some rows of a part were not made; empty for a whole part."""
    stopped = table.filter(pc.starts_with(table["error"].cast(pa.string()), pattern=STOPPED))
    return str(stopped["error"][0].as_py()).removeprefix(STOPPED) if stopped.num_rows else ""


def _parts(made: ray.data.Dataset | Iterator[tuple[int, pa.Table]]) -> Iterator[tuple[int, pa.Table]]:
    if isinstance(made, ray.data.Dataset):
        return whole_parts(made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    return made


def whole_parts(tables: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Gathers rows that arrive in any order into whole parts, sorted by ``row``.

    Raises:
        RuntimeError: If the rows end before a part is whole.
    """
    waiting: dict[int, list[pa.Table]] = {}
    for table in tables:
        for part in pc.unique(table[PART]).to_pylist():
            rows = table.filter(pc.equal(table[PART], part))
            waiting.setdefault(part, []).append(rows)
            if sum(piece.num_rows for piece in waiting[part]) == rows[PART_ROWS][0].as_py():
                # A copy that owns its memory: the pieces would keep their shared blocks alive.
                yield part, pa.concat_tables(waiting.pop(part)).sort_by("row").combine_chunks()
    if waiting:
        raise RuntimeError(f"the stage ended with {len(waiting)} parts unfinished: {sorted(waiting)[:5]}")


def _commit(artefact: Artefact, part: int, table: pa.Table, tally: _Tally, progress: Progress) -> Counter[str]:
    """Commits a part; returns its errors by reason."""
    errors = Counter(reason for reason in table["error"].to_pylist() if reason is not None)
    if errors and not tally.example:
        tally.example = str(table.filter(pc.is_valid(table["error"]))["path"][0].as_py())
    if MODEL_S in table.column_names:
        tally.model_s += pc.sum(table[MODEL_S]).as_py()
    if not tally.rows:
        tally.startup_s, tally.startup_rows = time.monotonic() - tally.started, table.num_rows
    tally.rows += table.num_rows
    stored = [name for name in table.column_names if name not in (PART, PART_ROWS, MODEL_S)]
    artefact.commit_part(part, table.select(stored), errors)
    progress.add(table.num_rows, errors.total())
    return errors


def _check_errors(stage: Stage, errors: dict[str, int], rows: int, artefact: Artefact, example: str) -> None:
    bad, rows = sum(errors.values()), max(rows, stage.rows or 0)  # the stage may have stopped before the end
    if bad <= stage.max_error_share * rows:
        return
    reason, count = max(errors.items(), key=lambda item: item[1])
    where = f", such as {example!r}" if example else ""
    raise UserError(
        f"{bad} of {rows} {stage.unit} cannot be used ({count} times {reason!r}{where}), more than "
        f"data.max_error_share={stage.max_error_share:g} allows: mend them or raise that setting "
        f"(what is done is kept in {artefact.folder.path!r})."
    )
