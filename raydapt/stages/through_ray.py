"""The parts of a stage from Ray Data, whole and in any order."""

import re
import time
from collections.abc import Sequence

import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from raydapt.cluster.joining import ensure_ray, require_shared
from raydapt.errors import UserError
from raydapt.stages.context import configure
from raydapt.stages.metrics import StageMetrics
from raydapt.stages.run import Parts, Stage, Tally, reasons_of, whole_parts
from raydapt.store.artefact import Artefact

_USER_ERROR = re.compile(r"raydapt\.errors\.UserError: (.+)")


def parts_through_ray(stage: Stage, pending: Sequence[int], artefact: Artefact, tally: Tally) -> Parts:
    """Connects to the cluster and lets it make the pending parts.

    Raises:
        UserError: A worker's, or when nodes are lost for good.
    """
    assert stage.dataset_of is not None
    ensure_ray(stage.ray)
    require_shared(artefact.folder.url, setting="store")
    configure()
    metrics = StageMetrics(stage.recipe.kind)
    try:
        dataset, tally.actors = stage.dataset_of(pending)
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for part, table in whole_parts(batches):
            yield part, table
            metrics.add(table.num_rows, reasons_of(table), time.monotonic() - tally.started)
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
