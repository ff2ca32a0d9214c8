"""Answers of a language model to the rows of a dataset, by vLLM through ``ray.data.llm``.

A row that cannot be asked keeps its place with a reason; a question that the engine refuses does so too. What kills the
engine kills its actor, which Ray starts again with the rows that were on their way.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray.data
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raydapt.cluster.nodes import address_of, capacity, require_cpu, require_nodes, selector
from raydapt.models.answer_work import answer_work
from raydapt.settings.groups import RaySettings
from raydapt.settings.language import EngineSettings
from raydapt.stages.engine_work import timed
from raydapt.stages.questions import ANSWER, ASKED, ERROR, FAILED, SECONDS, PromptBuilder, Questions, SkipRow, as_result
from raydapt.stages.vllm_engine import (
    engine_arguments,
    engine_environment,
    model_and_revision,
    request_of,
    require_vllm,
    sampling_of,
)

_STAGE = "vLLMEngineStage"
"""As ray.data.llm calls what holds the engine."""


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
    require_vllm(setting)
    from ray.data.llm import build_processor

    engines, on_gpu = plan_engines(settings, setting, ray_settings)
    sampling = sampling_of(settings)
    label = selector(ray_settings.decode_nodes)
    processor = build_processor(
        _engine_config(address, settings, ray_settings, engines=engines, on_gpu=on_gpu, images=questions.images),
        preprocess=partial(_to_engine, asker=questions.build, chat=dict(chat), sampling=sampling),
        postprocess=partial(_from_engine, kept=frozenset(questions.schema.names)),
        preprocess_map_kwargs={"label_selector": label},
        postprocess_map_kwargs={"label_selector": label},
    )
    # The configuration has no word for nodes' labels and the engine's work; what a stage hands to Ray Data has.
    placed = _placement(ray_settings.model_nodes, settings.tensor_parallel)
    stage = processor.get_stage_by_name(_STAGE)
    stage.map_batches_kwargs.update(placed)
    engine = timed(stage.fn, answer_work(address), settings.tensor_parallel)
    processor.stages[_STAGE] = stage.model_copy(update={"fn": engine})  # an assignment would ask for a GPU
    named = partial(as_result, schema=questions.schema)
    answered = processor(dataset)
    return answered.map_batches(named, batch_format="pyarrow", batch_size=None, label_selector=label), engines


def _engine_config(
    address: str, settings: EngineSettings, ray_settings: RaySettings, *, engines: int, on_gpu: bool, images: bool
) -> Any:
    from ray.data.llm import vLLMEngineProcessorConfig

    name, pinned = model_and_revision(address)
    return vLLMEngineProcessorConfig(
        model_source=name,
        engine_kwargs=engine_arguments(settings, on_gpu=on_gpu, images=images) | pinned,
        batch_size=settings.batch_size,
        # Enough batches on their way that the engine never waits for the next one.
        max_concurrent_batches=max(2, -(-2 * settings.max_num_seqs // settings.batch_size)),
        concurrency=(engines, engines),
        should_continue_on_error=True,
        log_engine_metrics=False,
        runtime_env={"env_vars": engine_environment(on_gpu=on_gpu, local=address_of(ray_settings) == "local")},
        placement_group_config=None if on_gpu else {"bundles": [{"CPU": 1}]},
        # The template was applied once per text before; the engine tokenizes, and looks at images, itself.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def _to_engine(
    row: dict[str, Any], *, asker: PromptBuilder, chat: Mapping[str, str], sampling: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        question = asker(row)
    except SkipRow as verdict:
        return {ERROR: str(verdict), FAILED: str(verdict), "opaque": _Opaque()}
    return {ASKED: question.text, "opaque": _Opaque(), **request_of(question, chat, sampling)}


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
