"""Questions to a language model, row by row, by the engine that the settings name."""

import ray.data

from raydapt.settings.groups import RaySettings
from raydapt.settings.language import EngineSettings
from raydapt.stages.endpoint import ask_endpoint
from raydapt.stages.llm import Questions, ask_vllm


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

    chat = chat_texts(address, questions.texts(), image=questions.images, setting=f"{questions.setting}.model")
    return ask_vllm(rows, questions, settings, address=address, chat=chat, ray_settings=ray_settings)
