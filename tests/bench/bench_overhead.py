"""What Ray and the stage machinery add to a model that is slow by construction: a sleeping actor, no arithmetic.

``python -m tests.bench.bench_overhead`` runs a stage of parts of decoded-image size over 1, 2 and 4 actors on one node
and on two, and prints how much longer each took than ``parts x sleep / actors``. The time until the first part is
there is start-up, paid once, and stands apart; the overhead is what comes per part after that.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.cluster_utils import Cluster
from ray.data import ActorPoolStrategy

from raydapt.cluster.joining import ensure_ray
from raydapt.cluster.nodes import selector
from raydapt.settings.groups import RaySettings
from raydapt.stages.commit import MODEL_S, PART, PART_ROWS, committing
from raydapt.stages.context import configure
from raydapt.stages.run import Stage, run_stage
from raydapt.store.artefact import Artefact, Shard, Store
from raydapt.store.fingerprint import Recipe
from tests.bench.bench_features import markdown

PARTS_PER_ACTOR, SLEEP_S, ROWS_PER_PART, WIDTH = 20, 1.0, 512, 512
PLACES = ((1, 1), (1, 2), (1, 4), (2, 2), (2, 4))
"""Nodes and actors."""
NODE_CPUS = 16
"""Logical ones: whoever sleeps needs none."""


class Sleeper:
    """A model that takes a fixed time for a part, and needs no processor meanwhile."""

    def __init__(self, sleep_s: float) -> None:
        self._sleep_s = sleep_s

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """A part of features, as large as those of a real encoder."""
        time.sleep(self._sleep_s)
        part = int(batch[PART][0])
        feature = pa.array(np.zeros(ROWS_PER_PART * WIDTH, dtype=np.float32))
        return pa.table(
            {
                "row": np.arange(ROWS_PER_PART) + part * ROWS_PER_PART,
                "path": [f"{part}/{row}" for row in range(ROWS_PER_PART)],
                "error": pa.nulls(ROWS_PER_PART, pa.string()),
                "feature": pa.FixedSizeListArray.from_arrays(feature, WIDTH),
                MODEL_S: np.full(ROWS_PER_PART, self._sleep_s / ROWS_PER_PART),
                PART: np.full(ROWS_PER_PART, part),
                PART_ROWS: np.full(ROWS_PER_PART, ROWS_PER_PART),
            }
        )


def run_once(settings: RaySettings, *, parts: int, actors: int, cpus: float, sleep_s: float) -> dict[str, float]:
    """Times at which the first and the last part were committed, seconds since the stage began."""
    ends: list[float] = []
    note = Artefact.note_part
    recipe, folder = Recipe(kind="slept", settings={"actors": actors}, inputs=()), tempfile.TemporaryDirectory()

    def note_and_time(self: Artefact, shard: Shard) -> None:
        note(self, shard)
        ends.append(time.monotonic())

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        configure()
        # All actors begin together: else those that start late would count as overhead of those that did not.
        ray.data.DataContext.get_current().wait_for_min_actors_s = 300
        numbers = ray.data.from_items([{PART: part} for part in pending], override_num_blocks=len(pending))
        slept = numbers.map_batches(
            committing(Sleeper, Store(folder.name).artefact_of(recipe)),
            fn_constructor_args=(sleep_s,),
            batch_size=1,
            compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=cpus,
            label_selector=selector(settings.model_nodes),
        )
        return slept, actors

    stage = Stage(
        recipe=recipe,
        parts=range(parts),
        dataset_of=dataset_of,
        rows=parts * ROWS_PER_PART,
        max_error_share=0.0,
        ray=settings,
    )
    Artefact.note_part = note_and_time  # type: ignore[method-assign]
    started = time.monotonic()
    try:
        with folder:
            run_stage(Store(folder.name), stage)
    finally:
        Artefact.note_part = note  # type: ignore[method-assign]
    return {"first": ends[0] - started, "last": ends[-1] - started, "parts": len(ends)}


def measure(address: str, nodes: int, actors: int, *, parts_per_actor: int, sleep_s: float) -> dict[str, Any]:
    """One line of the table: so many actors on the first node, or spread evenly over both."""
    settings = RaySettings(address=address, progress=False, model_nodes="bench=first" if nodes == 1 else None)
    parts = parts_per_actor * actors
    # An actor asks for as much of a node as makes its share of the actors fill it.
    found = run_once(settings, parts=parts, actors=actors, cpus=NODE_CPUS * nodes / actors, sleep_s=sleep_s)
    # All actors begin together, so when the first part ends each of them has slept once.
    ideal = (parts_per_actor - 1) * sleep_s
    took = found["last"] - found["first"]
    line = {
        "nodes": nodes,
        "actors": actors,
        "parts": parts,
        "sleep, s": sleep_s,
        "start-up, s": round(found["first"] - sleep_s, 1),
        "ideal, s": round(ideal, 2),
        "took, s": round(took, 2),
        "overhead": f"{took / ideal - 1:.1%}",
    }
    print(line, file=sys.stderr, flush=True)
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=PARTS_PER_ACTOR, help="for each actor")
    parser.add_argument("--sleep", type=float, default=SLEEP_S, help="seconds a part")
    given = parser.parse_args(arguments)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for name in ("first", "second"):
        cluster.add_node(num_cpus=NODE_CPUS, labels={"bench": name}, wait=False)
    cluster.wait_for_nodes(timeout=120)
    ensure_ray(RaySettings(address=cluster.address))
    words = {"parts_per_actor": given.parts, "sleep_s": given.sleep}
    table = [measure(cluster.address, nodes, actors, **words) for nodes, actors in PLACES]
    ray.shutdown()  # type: ignore[no-untyped-call]
    cluster.shutdown()
    print(f"## Overhead of the stage, parts of {ROWS_PER_PART} rows\n\n" + markdown(table))


if __name__ == "__main__":
    main()
