"""The parts of a stage on Ray Data, committed by its actors or, where rows come one by one, here."""

import re
import time
from collections.abc import Iterator, Sequence
from itertools import chain

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from raydapt.cluster.joining import ensure_ray, require_reachable, require_shared
from raydapt.errors import UserError
from raydapt.progress import said_if_slow
from raydapt.stages.commit import COMMITTED, Committed, commit_part, told_of
from raydapt.stages.context import configure
from raydapt.stages.metrics import StageMetrics
from raydapt.stages.run import Commits, Stage, Tally, whole_parts
from raydapt.store.artefact import Artefact

_ENGINE = "vLLMEngineStage"
"""What Ray calls the actors of `ray.data.llm` that hold a language model."""
_USER_ERROR = re.compile(r"raydapt\.errors\.UserError: (.+)")


def commits_through_ray(stage: Stage, pending: Sequence[int], artefact: Artefact, tally: Tally) -> Commits:
    """Connects to the cluster and lets it make and commit the pending parts.

    Raises:
        UserError: A worker's, or when nodes are lost for good.
    """
    assert stage.dataset_of is not None
    ensure_ray(stage.ray)
    require_shared(artefact.folder.url, setting="store")
    require_reachable(artefact.folder)
    configure()
    metrics = StageMetrics(stage.recipe.kind)
    try:
        dataset, tally.actors = stage.dataset_of(pending)
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for committed in _commits(_after_start(iter(batches), stage, tally.actors), artefact):
            yield committed
            if committed.shard is not None:
                seconds = time.monotonic() - tally.started
                metrics.add(committed.shard.rows, committed.shard.errors, seconds, tally.speeds(seconds))
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


def _after_start(batches: Iterator[pa.Table], stage: Stage, actors: int) -> Iterator[pa.Table]:
    """The same batches; says that actors start when the first batch is long in coming."""
    with said_if_slow(f"starting {actors} actor{'' if actors == 1 else 's'} for {stage.recipe.kind} on Ray …"):
        first = next(batches, None)
    if first is not None:
        yield from chain([first], batches)


def _commits(batches: Iterator[pa.Table], artefact: Artefact) -> Iterator[Committed]:
    """What actors tell of the parts that they committed; the rows of other stages are gathered and committed here."""
    filled = (batch for batch in batches if batch.num_rows)
    first = next(filled, None)
    if first is None:
        return
    if COMMITTED in first.column_names:
        yield from told_of(chain([first], filled))
    else:
        for part, table in whole_parts(chain([first], filled)):
            yield commit_part(artefact, part, table)


def _last_reason(text: str) -> str:
    """The last line of a traceback that names an error, which is what it began with."""
    named = [line.strip() for line in text.splitlines() if re.match(r"\s*[\w.]*(Error|Exception)\b.*:", line)]
    return named[-1][:200] if named else "its log is above"
