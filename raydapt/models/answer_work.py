"""The work of a language model for its answers: two operations for each parameter that a token passes.

What an image costs before it is tokens, and what attention multiplies by itself, is left out.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from raydapt.models.hub import split_revision

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True)
class AnswerWork:
    """What a token costs.

    Attributes:
        layers: Parameters of the decoder's layers that each token passes, of a question, an image or an answer; 0 where
            nobody knows.
        head: Those that each token of an answer passes besides.
        precision: What vLLM multiplies in on a GPU.
    """

    layers: float = 0.0
    head: float = 0.0
    precision: str = "bf16"

    def flop(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Floating-point operations of one answer; tokens of an image are tokens of the prompt."""
        return 2.0 * (self.layers * (prompt_tokens + answer_tokens) + self.head * answer_tokens)


@lru_cache
def answer_work(address: str) -> AnswerWork:
    """What a token of a model costs, counted on the model as transformers builds it, without its weights.

    Args:
        address: See `raydapt.models.language.model_address`.
    """
    transformers: Any = importlib.import_module("transformers")  # takes seconds
    name, revision = (address, None) if Path(address).is_dir() else split_revision(address)
    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        return work_of_model(_without_weights(transformers, config), config)
    except Exception:  # whatever it is, the engine may know the model, and counting stops nobody
        return AnswerWork()


def work_of_model(model: Any, config: Any) -> AnswerWork:
    """What a token of a model of transformers costs.

    Args:
        model: With its head; its parameters may be without storage.
        config: Its configuration.
    """
    head, places = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return AnswerWork(
        layers=sum(_passed(model.get_decoder(), config.get_text_config(), leave_out=(head, places))),
        head=float(head.numel()),
        precision="fp16" if config.dtype == torch.float16 else "bf16",
    )


def _passed(decoder: Any, config: Any, leave_out: tuple[Any, ...]) -> Iterator[float]:
    """Parameters of each matrix that a token passes; of a mixture of experts, those of the few that it is sent to."""
    experts = next((count for name in _EXPERTS if (count := getattr(config, name, None))), 1)
    share = getattr(config, "num_experts_per_tok", None) or 1
    for name, parameter in decoder.named_parameters():
        if not any(parameter is other for other in leave_out):
            yield parameter.numel() * (share / experts if ".experts." in name else 1.0)


def _without_weights(transformers: Any, config: Any) -> Any:
    kinds = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind = transformers.AutoModelForImageTextToText if type(config) in kinds else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(config)
