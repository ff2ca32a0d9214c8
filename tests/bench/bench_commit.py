"""What of a stage passes through the driver: rows gathered there, against actors that commit their parts themselves.

``python -m tests.bench.bench_commit --rows 10000 100000 1000000`` runs a stage of two actors whose model does nothing
(512 float32 features a row, random bits, in parts of 512 rows), each time in a process of its own, and prints the bytes
that the driver took from Ray Data and the largest memory of its process (RSS) with what of it was there before the
stage began. ``--nodes 1 2 4`` measures a local cluster of so many nodes as well, with an actor on each.
"""

import argparse
import itertools
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
from ray.cluster_utils import Cluster
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


def cluster_of(nodes: int) -> tuple[Cluster, RaySettings]:
    """Nodes of one logical processor each beside a head with none, and the settings that join them."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, wait=False)
    cluster.wait_for_nodes(timeout=120)
    return cluster, RaySettings(address=cluster.address, progress=False)


def measure(rows: int, way: str, nodes: int = 0) -> dict[str, Any]:
    """One line of the table, of this process; 0 nodes are this machine alone with two actors."""
    actors = nodes or ACTORS
    cluster, settings = cluster_of(nodes) if nodes else (None, RaySettings(address="local", cpus=4, progress=False))
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
            compute = ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2)
            made = numbers.map_batches(maker, fn_constructor_args=(rows,), batch_size=1, compute=compute, num_cpus=1)
            return made, actors

        before_mb, started = peak_mb(), time.monotonic()
        stage = Stage(
            recipe=recipe, parts=range(parts), dataset_of=dataset_of, rows=rows, max_error_share=0.0, ray=settings
        )
        manifest = run_stage(store, stage).artefact.manifest
        assert manifest.rows == rows
        seconds = time.monotonic() - started
    ray.shutdown()  # type: ignore[no-untyped-call]
    if cluster is not None:
        cluster.shutdown()
    return {
        "nodes": nodes or 1,
        "actors": actors,
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
    parser.add_argument("--way", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--nodes", type=int, nargs="+", default=[0], help="of a local cluster; 0: Ray on this machine")
    parser.add_argument("--here", action="store_true", help="measure the first of each alone, in this process")
    given = parser.parse_args(arguments)
    if given.here:
        print(json.dumps(measure(given.rows[0], given.way[0], given.nodes[0])))
        return
    table = []
    for rows, nodes in itertools.product(given.rows, given.nodes):
        for way in given.way:
            command = [sys.executable, "-m", "tests.bench.bench_commit", "--rows", str(rows), "--nodes", str(nodes)]
            command += ["--way", way, "--here"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            table.append(json.loads(done.stdout.splitlines()[-1]))
            print(table[-1], file=sys.stderr, flush=True)
    print(f"## What passes through the driver, parts of {ROWS_PER_PART} rows of {WIDTH} features\n\n" + markdown(table))


if __name__ == "__main__":
    main()
