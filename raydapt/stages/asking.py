"""Questions to a language model, row by row, by the engine that the settings name; on Ray or beside this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

import pyarrow as pa

from raydapt.models.language import image_places, parameter_count
from raydapt.settings.groups import RaySettings
from raydapt.settings.language import EngineSettings
from raydapt.stages.endpoint import EndpointClient, ask_endpoint, require_endpoint
from raydapt.stages.questions import Questions
from raydapt.stages.run import Parts, whole_parts
from raydapt.stages.vllm_process import EngineClient
from raydapt.stages.work import ASK_S, writing_s

if TYPE_CHECKING:
    import ray.data

_QUESTION_TOKENS = 64
"""Of a question without its image, about."""


def ask(
    rows: ray.data.Dataset,
    questions: Questions,
    settings: EngineSettings,
    *,
    address: str,
    ray_settings: RaySettings,
) -> tuple[ray.data.Dataset, int]:
    """Puts every row's question to a server or to vLLM; what goes in and comes out: `raydapt.stages.llm.ask_vllm`.

    Args:
        rows: What is asked about.
        questions: What is asked of each row.
        settings: The engine.
        address: The model, see `raydapt.models.language.model_address`; a server has its own.
        ray_settings: Which nodes ask and which hold engines.

    Raises:
        UserError: When the engine is not there or the model cannot answer.
    """
    if settings.engine == "openai":
        return ask_endpoint(rows, questions, settings, ray_settings=ray_settings)
    from raydapt.models.language import chat_texts  # the models' room imports for seconds, in every worker that asks
    from raydapt.stages.llm import ask_vllm

    chat = chat_texts(address, questions.texts(), image=questions.images, setting=f"{questions.setting}.model")
    return ask_vllm(rows, questions, settings, address=address, chat=chat, ray_settings=ray_settings)


def parts_here(
    blocks: Iterable[pa.Table],
    questions: Questions,
    settings: EngineSettings,
    *,
    address: str,
    named: Callable[[pa.Table], pa.Table] = lambda answers: answers,
) -> Parts:
    """Parts of answers without Ray: by a server, or by an engine in a process beside this one, which starts at once.

    Args:
        blocks: Rows to be asked about, with the columns `raydapt.stages.commit.PART` and ``PART_ROWS``.
        questions: What is asked of each row.
        settings: The engine.
        address: As of `ask`.
        named: Gives the columns of answers their stored names.

    Raises:
        UserError: As `ask`.
    """
    client: EndpointClient | EngineClient
    if settings.engine == "openai":
        require_endpoint(settings, questions.setting)
        client = EndpointClient(questions.build, settings, questions.schema, questions.setting)
    else:
        from raydapt.models.language import chat_texts

        chat = chat_texts(address, questions.texts(), image=questions.images, setting=f"{questions.setting}.model")
        client = EngineClient(questions, settings, address=address, chat=chat)
    return _parts(client, blocks, named)


def _parts(
    client: EndpointClient | EngineClient, blocks: Iterable[pa.Table], named: Callable[[pa.Table], pa.Table]
) -> Parts:
    with closing(client):
        yield from whole_parts(named(client(block)) for block in blocks)


def answer_s(settings: EngineSettings, address: str, *, images: bool) -> float | None:
    """Estimated seconds of an answer without Ray; None where nobody knows, or only Ray can spread the engines.

    Args:
        settings: The engine.
        address: The model, see `raydapt.models.language.model_address`.
        images: Whether a question has an image.
    """
    if settings.replicas not in ("auto", 1) or settings.tensor_parallel > 1:
        return None
    if settings.engine == "openai":  # what is done here is decoding; the work is the server's
        return ASK_S
    parameters = parameter_count(address)
    if parameters is None:
        return None
    tokens = _QUESTION_TOKENS + settings.max_tokens + (image_places(address) if images else 0)
    return ASK_S + writing_s(parameters, tokens=tokens)
