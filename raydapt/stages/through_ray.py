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

_ENGINE = "vLLMEngineStage"
"""What Ray calls the actors of `ray.data.llm` that hold a language model."""
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
        if _ENGINE in str(error) and "__init__" in str(error):
            raise UserError(
                f"The engine for {stage.recipe.kind} does not start with its model ({_last_reason(str(error))}): check "
                "the model and its files, give it a server with engine=openai, or lower max_model_len and max_num_seqs."
            ) from error
        raise


def _last_reason(text: str) -> str:
    """The last line of a traceback that names an error, which is what it began with."""
    named = [line.strip() for line in text.splitlines() if re.match(r"\s*[\w.]*(Error|Exception)\b.*:", line)]
    return named[-1][:200] if named else "its log is above"
