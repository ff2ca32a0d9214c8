"""Settings of the language models that vLLM serves: what describes images, and what describes classes."""

from dataclasses import dataclass
from typing import Literal

from raydapt.settings.types import STRICT, Auto, Count, PositiveInt


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """A language model, and how it is served; only the model, ``greedy`` and ``max_tokens`` decide on texts."""

    __pydantic_config__ = STRICT

    model: str = "mini"
    """``mini``, a folder in transformers' layout, or a name of the model hub (``ORG/NAME@REVISION``); with an endpoint,
    the server's name."""
    engine: Literal["vllm", "openai"] = "vllm"
    """vLLM within Ray Data, or any server that speaks OpenAI's protocol."""
    base_url: str | None = None
    """Address of such a server, as http://host:8000/v1."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key, on every node; keys are written nowhere."""
    max_tokens: PositiveInt = 77
    """Longest answer, in tokens."""
    greedy: bool = True
    """Off: texts are sampled at temperature 1, with a seed for each."""
    replicas: PositiveInt | Auto = "auto"
    """Engines, or processes that ask the server; ``auto``: one engine per ``tensor_parallel`` GPUs, at least one."""
    tensor_parallel: PositiveInt = 1
    """GPUs of an engine; 1 is fastest for models that fit."""
    max_num_seqs: PositiveInt = 128
    """Texts that an engine writes at a time, or open requests to a server."""
    max_model_len: PositiveInt | None = None
    """Tokens of question and answer together, an image's included; None: the model's own."""
    prefix_caching: bool = True
    """Compute the beginning that prompts share once; changes no text."""
    batch_size: PositiveInt = 32
    """Rows that are handed to an engine together."""


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(EngineSettings):
    """Captions of images and of groups (LatteCLIP)."""

    __pydantic_config__ = STRICT

    image_prompt: Auto | str = "auto"
    """Asked of every image; a ``{}`` is its zero-shot class. ``auto``: the paper's for the named set."""
    group_prompt: Auto | str = "auto"
    """Asked of every group; ``auto``: the paper's for the named set."""
    image_px: PositiveInt = 1344
    """Images with a longer side are made smaller first."""
    canvas_px: PositiveInt | Auto = "auto"
    """Side of a group's canvas; ``auto``: 672 as in the paper, less where no image would be larger than 326 px."""
    gap_px: Count | Auto = "auto"
    """Between the images of a group; ``auto``: 20 to 672."""
    seed: Count = 0
    """Of the groups; the run's own seed does not change them."""


@dataclass(frozen=True, kw_only=True)
class DescribeSettings(EngineSettings):
    """Descriptions of classes; the questions and their sampling are LaFTer's."""

    __pydantic_config__ = STRICT

    model: str = "Qwen/Qwen2.5-7B-Instruct"
    """A folder in transformers' layout, or a name of the model hub: any model that follows instructions."""
    greedy: bool = False
    max_tokens: PositiveInt = 50
    form: Literal["questions", "list"] = "questions"
    """Five questions about a class, or a single one for a list (which needs more ``max_tokens``)."""
    answers: PositiveInt = 5
    """To each question; 1 where sampling is greedy."""
    sentences: PositiveInt = 10
    """Asked for by the ``list`` question."""
    most: PositiveInt = 50
    """Descriptions of a class that are kept."""
    seed: Count = 0
    """Of the answers; the run's own seed does not change them."""
