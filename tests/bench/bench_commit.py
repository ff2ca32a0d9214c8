"""What of a stage passes through the driver: rows gathered there, against actors that commit their parts themselves.

``python -m tests.bench.bench_commit --rows 10000 100000 1000000`` runs a stage of two actors whose model does nothing
(512 float32 features a row, random bits, in parts of 512 rows), each time in a process of its own, and prints the bytes
that the driver took from Ray Data and the largest memory of its process (RSS) with what of it was there before the
stage began.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from raydapt.cluster.joining import ensure_ray
from raydapt.settings.groups import RaySettings
from raydapt.stages import through_ray
from raydapt.stages.commit import PART, committing, with_part
from raydapt.stages.context import configure
from raydapt.stages.run import Stage, run_stage
from raydapt.store.artefact import Artefact, Store
from raydapt.store.fingerprint import Recipe
from tests.bench.bench_features import markdown

ROWS, ROWS_PER_PART, WIDTH, ACTORS = (10_000, 100_000), 512, 512, 2
WAYS = ("rows to the driver", "actors commit")
_MEGABYTE = 1e6


class NullModel:
    """Features of a part at once, drawn from its number."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """A part."""
        part = int(batch[PART][0])
        first = part * ROWS_PER_PART
        row_N = np.arange(first, min(first + ROWS_PER_PART, self._rows))
        feature = np.random.default_rng(part).random(len(row_N) * WIDTH, dtype=np.float32)
        table = pa.table(
            {
                "row": row_N,
                "path": [f"{row}.png" for row in row_N],
                "error": pa.nulls(len(row_N), pa.string()),
                "feature": pa.FixedSizeListArray.from_arrays(pa.array(feature), WIDTH),
            }
        )
        return with_part(table, part)


def measure(rows: int, way: str) -> dict[str, Any]:
    """One line of the table, of this process."""
    settings = RaySettings(address="local", cpus=4, progress=False)
    recipe, parts = Recipe(kind="null", settings={}, inputs=()), -(-rows // ROWS_PER_PART)
    taken, commits = [0], through_ray._commits

    def counted(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for batch in batches:
            taken[0] += batch.nbytes
            yield batch

    def counting(batches: Iterator[pa.Table], artefact: Artefact) -> Any:
        return commits(counted(batches), artefact)

    through_ray._commits = counting
    ensure_ray(settings)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)

        def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
            configure(block_bytes=1024 * 1024)
            numbers = ray.data.from_items([{PART: part} for part in pending], override_num_blocks=len(pending))
            maker = committing(NullModel, store.artefact_of(recipe)) if way == WAYS[1] else NullModel
            compute = ActorPoolStrategy(size=ACTORS, max_tasks_in_flight_per_actor=2)
            made = numbers.map_batches(maker, fn_constructor_args=(rows,), batch_size=1, compute=compute, num_cpus=1)
            return made, ACTORS

        before_mb, started = peak_mb(), time.monotonic()
        stage = Stage(
            recipe=recipe, parts=range(parts), dataset_of=dataset_of, rows=rows, max_error_share=0.0, ray=settings
        )
        manifest = run_stage(store, stage).artefact.manifest
        assert manifest.rows == rows
        seconds = time.monotonic() - started
    ray.shutdown()  # type: ignore[no-untyped-call]
    return {
        "rows": rows,
        "way": way,
        "bytes stored, MB": round(sum(shard.bytes for shard in manifest.shards) / _MEGABYTE, 1),
        "through the driver, MB": round(taken[0] / _MEGABYTE, 3),
        "driver's RSS before, MB": round(before_mb),
        "largest RSS, MB": round(peak_mb()),
        "rows/s": round(rows / seconds),
        "after the first part, rows/s": round((rows - ROWS_PER_PART) / (seconds - manifest.stats["startup_seconds"])),
    }


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, each line of which a process of its own measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--way", choices=WAYS, help="measure this one alone, in this process")
    given = parser.parse_args(arguments)
    if given.way:
        print(json.dumps(measure(given.rows[0], given.way)))
        return
    table = []
    for rows in given.rows:
        for way in WAYS:
            command = [sys.executable, "-m", "tests.bench.bench_commit", "--rows", str(rows), "--way", way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            table.append(json.loads(done.stdout.splitlines()[-1]))
            print(table[-1], file=sys.stderr, flush=True)
    print(f"## What passes through the driver, parts of {ROWS_PER_PART} rows of {WIDTH} features\n\n" + markdown(table))


if __name__ == "__main__":
    main()
