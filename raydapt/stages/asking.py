"""Questions to a language model, row by row, by the engine that the settings name."""

from collections.abc import Callable, Iterable

import pyarrow as pa
import ray.data

from raydapt.settings.groups import RaySettings
from raydapt.settings.language import EngineSettings
from raydapt.stages.endpoint import ask_endpoint
from raydapt.stages.llm import PromptBuilder, ask_vllm


def ask(
    rows: ray.data.Dataset,
    asker: PromptBuilder,
    settings: EngineSettings,
    *,
    address: str,
    questions: Callable[[], Iterable[str]],
    images: bool,
    schema: pa.Schema,
    setting: str,
    ray_settings: RaySettings,
) -> tuple[ray.data.Dataset, int]:
    """Puts every row's question to a server or to vLLM; what goes in and comes out: `raydapt.stages.llm.ask_vllm`.

    Args:
        rows: What is asked about.
        asker: Makes the questions.
        settings: The engine.
        address: The model, see `raydapt.models.language.model_address`; a server has its own.
        questions: All texts that may be asked, which vLLM gets within the model's chat template.
        images: Whether questions have an image.
        schema: Columns of the result.
        setting: The group of settings, for messages.
        ray_settings: Which nodes ask and which hold engines.

    Raises:
        UserError: When the engine is not there or the model cannot answer.
    """
    if settings.engine == "openai":
        return ask_endpoint(rows, asker, settings, schema=schema, setting=setting, ray_settings=ray_settings)
    from raydapt.models.language import chat_texts  # the models' room imports for seconds, in every worker that asks

    chat = chat_texts(address, questions(), image=images, setting=f"{setting}.model")
    return ask_vllm(
        rows,
        asker,
        settings,
        address=address,
        chat=chat,
        images=images,
        schema=schema,
        setting=setting,
        ray_settings=ray_settings,
    )
