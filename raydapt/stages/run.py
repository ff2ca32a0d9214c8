"""Running a stage: Ray Data or this process makes parts, whoever holds a whole one commits it, the driver the manifest.

Any stage goes through `run_stage`. What is committed is never made again; what is not is invisible. Actors tell the
driver that they committed a part and keep its rows; what comes row by row, from language models, is gathered here.
Either way gives the same parts of the same bytes, and goes on where the other was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from raydapt.cluster.nodes import may_stay
from raydapt.data.sources import Source
from raydapt.errors import UserError
from raydapt.progress import Progress
from raydapt.settings.groups import RaySettings
from raydapt.stages.commit import PART, PART_ROWS, Committed, commit_part
from raydapt.stages.context import StageContext
from raydapt.stages.work import HERE_S, is_small, torch_as_before
from raydapt.store.artefact import Artefact, Shard, StageResult, Store
from raydapt.store.environment import versions
from raydapt.store.fingerprint import Recipe

if TYPE_CHECKING:  # Ray takes seconds to import, and small stages do without
    import ray.data

    MakeRows = Callable[[Sequence[int]], tuple[ray.data.Dataset, int]]
    """Builds the result rows of the given parts, and tells how many actors that takes; see `Stage`."""

Parts = Generator[tuple[int, pa.Table], None, None]
"""Whole parts with their numbers, rows in order."""
Commits = Generator[Committed, None, None]
"""What is told of parts as they are committed."""
MakeHere = Callable[[Sequence[int]], Parts]
"""The same parts from this process."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage to be run.

    Attributes:
        recipe: What the artefact depends on.
        parts: Numbers of all its parts.
        dataset_of: Builds the Ray Dataset of result rows of the given parts, and tells how many actors it uses. Its
            rows have the columns `PART`, `PART_ROWS`, ``row`` (order within the part), ``path`` and ``error``, or are
            those of `raydapt.stages.commit.committed_row`. None for what is always made in this process.
        here: Makes the given parts in this process by the same code, whole and in their order; None for what needs Ray.
        row_s: Estimated seconds of work that a row is, on one core; None where nobody knows.
        rows: Rows of all parts together, where known.
        max_error_share: Largest share of rows in error.
        ray: The cluster and whether to show progress.
        unit: What a row is, for people.
        grows: Whether the artefact may hold more or fewer parts than are asked for; those that are missing are added.
    """

    recipe: Recipe
    parts: Sequence[int]
    dataset_of: MakeRows | None
    rows: int | None
    max_error_share: float
    ray: RaySettings
    unit: str = "images"
    grows: bool = False
    here: MakeHere | None = None
    row_s: Callable[[], float | None] | None = None

    def seconds(self, pending: Sequence[int]) -> float | None:
        """Estimated work of the pending parts, which count alike; looked at only where there is a choice."""
        row_s = self.row_s() if self.row_s else None
        if row_s is None or self.rows is None:
            return None
        return row_s * self.rows * len(pending) / max(1, len(self.parts))


@dataclass
class Tally:
    """What this session has done; ``startup_s`` ends when the first part, of ``startup_rows`` rows, is there."""

    rows: int = 0
    model_s: float = 0.0
    model_flop: float = 0.0
    peak_flop: float = 0.0
    actors: int = 0
    started: float = field(default_factory=time.monotonic)
    startup_s: float = 0.0
    startup_rows: int = 0
    example: str = ""

    def add(self, committed: Committed, shard: Shard) -> None:
        """Counts a part that has just been committed."""
        self.example = self.example or committed.example
        self.model_s += committed.model_s
        self.model_flop += committed.model_flop
        self.peak_flop += committed.peak_flop
        if not self.rows:
            self.startup_s, self.startup_rows = time.monotonic() - self.started, shard.rows
        self.rows += shard.rows

    def stats(self, rows: int) -> dict[str, Any]:
        """For the manifest of an artefact that has so many rows now."""
        seconds = time.monotonic() - self.started
        return {
            "seconds": round(seconds, 3),
            "startup_seconds": round(self.startup_s, 3),
            "startup_rows": self.startup_rows,
            "rows": rows,
            "rows_computed": self.rows,
            "rows_reused": rows - self.rows,
            "rows_per_s": round(self.rows / seconds, 3),
            "model_seconds": round(self.model_s, 3),
            "actors": self.actors,
            **self.speeds(seconds),
        }

    def speeds(self, seconds: float) -> dict[str, float | None]:
        """Share of the actors' time in the model, what it worked in that, and as a share of what its device could."""
        return {
            "model_share": round(self.model_s / (seconds * self.actors), 4) if self.actors else 0.0,
            "model_flop_per_s": round(self.model_flop / self.model_s) if self.model_flop and self.model_s else None,
            "share_of_peak": round(self.model_flop / self.peak_flop, 4) if self.peak_flop else None,
        }


def stage_of_images(
    source: Source,
    context: StageContext,
    recipe: Recipe,
    dataset_of: MakeRows,
    *,
    here: MakeHere | None = None,
    row_s: Callable[[], float] | None = None,
) -> Stage:
    """A stage that makes one row of each image of a source; see `Stage` for how and where."""
    return Stage(
        recipe=recipe,
        parts=[part.index for part in source.parts],
        dataset_of=dataset_of,
        here=here,
        row_s=row_s,
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
        tally = Tally()
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


def _make(artefact: Artefact, stage: Stage, pending: Sequence[int], tally: Tally) -> set[int]:
    """Computes and commits the pending parts; returns those that turned out to have no rows."""
    failed = sum(artefact.committed_errors().values())
    progress = Progress(
        stage.recipe.kind,
        total=stage.rows,
        unit=stage.unit,
        show=stage.ray.progress,
        done=artefact.committed_rows(),
        failed=failed,
    )
    unseen, given_up = set(pending), ""
    try:
        with closing(_commits(stage, pending, artefact, tally)) as commits:
            for committed in commits:
                unseen.discard(committed.part)
                if committed.shard is None:
                    given_up = given_up or committed.stopped
                    continue  # other parts were whole before, and are kept
                artefact.note_part(committed.shard)
                if not tally.rows and committed.model_s:
                    progress.begun(committed.model_s)
                tally.add(committed, committed.shard)
                progress.add(committed.shard.rows, sum(committed.shard.errors.values()))
                if stage.rows and progress.failed > stage.max_error_share * stage.rows:
                    break  # no need to read on, it is sure already that too many rows are bad
    finally:
        progress.close()
    if given_up:
        raise UserError(given_up)
    return unseen


def _commits(stage: Stage, pending: Sequence[int], artefact: Artefact, tally: Tally) -> Commits:
    """Commits the pending parts: in this process while their work is small, and on Ray what is left."""
    left = list(pending)
    if stage.here and (stage.dataset_of is None or (may_stay(stage.ray) and is_small(stage.seconds(pending)))):
        for part, table in _parts_here(stage, left, stage.here, tally):
            yield commit_part(artefact, part, table)
    if left and stage.dataset_of is not None:
        from raydapt.stages.through_ray import commits_through_ray

        yield from commits_through_ray(stage, left, artefact, tally)


def _parts_here(stage: Stage, left: list[int], make: MakeHere, tally: Tally) -> Parts:
    """Makes parts in this process and takes them from those that are left; stops where Ray is worth its start."""
    pending, on_ray = list(left), stage.dataset_of is not None
    tally.actors = int(on_ray)
    with torch_as_before(), closing(make(pending)) as made:
        started = time.monotonic()  # what is made at once, such as an engine, would start on Ray as well
        for part, table in made:
            left.remove(part)
            if table.num_rows or not on_ray:  # Ray tells nothing of a part without rows either
                yield part, table
            each_s = (time.monotonic() - started) / (len(pending) - len(left))
            if on_ray and each_s * len(left) > 2 * HERE_S:
                return  # the estimate was wrong
    left.clear()


def whole_parts(tables: Iterable[pa.Table]) -> Parts:
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
