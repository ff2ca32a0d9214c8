"""Language models, with or without eyes, by name: where they lie, what they are, how a question is put to them."""

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raydapt.errors import UserError
from raydapt.models.hub import split_revision
from raydapt.models.weight_files import check_safetensors
from raydapt.settings.language import EngineSettings
from raydapt.store.fingerprint import files_digest

MINI_CAPTIONER = Path(__file__).parent / "mini" / "captioner"
_USUAL_PLACES = 1024
_UNUSED_FILES = {".md", ".txt", ".gitattributes", ".bin", ".pt", ".pth", ".lock"}


def model_address(name: str, *, setting: str) -> str:
    """What the libraries load: a folder, or a name of the model hub.

    Raises:
        UserError: When what looks like a folder is none, or holds no model.
    """
    folder = MINI_CAPTIONER if name == "mini" else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"Setting {setting}={name!r} is a folder without config.json: give a model in transformers' layout."
            )
        for file in sorted(folder.glob("*.safetensors")):
            check_safetensors(file, setting=f"Setting {setting}={name!r}")
        return str(folder.absolute())
    if name == "mini" or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise UserError(
            f"Setting {setting}={name!r} is no folder, and no name of the model hub (ORGANISATION/NAME): check it."
        )
    return name


def model_identity(address: str) -> str:
    """What the texts of a model depend on, without loading it.

    Returns:
        For a folder, a digest of its weights, configurations and tokenizer, wherever it lies; for a name of the hub,
        the name.
    """
    folder = Path(address)
    if not folder.is_dir():
        return address
    used = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in _UNUSED_FILES)
    return files_digest(used, folder)


def engine_address(settings: EngineSettings, *, setting: str) -> str:
    """The address of the model that settings name; empty with a server, which has its own.

    Raises:
        UserError: See `model_address`.
    """
    return "" if settings.engine == "openai" else model_address(settings.model, setting=f"{setting}.model")


def who_answers(settings: EngineSettings, *, setting: str) -> tuple[str, str]:
    """The address of the model that settings name, and the identity of what answers; with a server, no address.

    Raises:
        UserError: See `model_address`.
    """
    if settings.engine == "openai":
        return "", f"{settings.base_url} {settings.model}"
    address = engine_address(settings, setting=setting)
    return address, model_identity(address)


def chat_texts(address: str, prompts: Iterable[str], *, image: bool, setting: str) -> dict[str, str]:
    """Each prompt within the model's own chat template, with the place of one image before it if one is shown.

    The template is applied once per prompt, here, rather than once per image: what differs between images is the image.

    Args:
        address: See `model_address`.
        prompts: What people ask.
        image: Whether an image goes with the question.
        setting: Name of the setting that gave the model, for messages.

    Raises:
        UserError: When the model cannot be read, knows no chat, or takes no images and should.
    """
    speaker = _processor(address, setting)
    if image and getattr(speaker, "image_processor", None) is None:
        raise UserError(
            f"Setting {setting}={address!r} takes no images: give a vision-language model, such as "
            "llava-hf/llava-v1.6-mistral-7b-hf."
        )
    if not getattr(speaker, "chat_template", None):
        raise UserError(
            f"Setting {setting}={address!r} has no chat template: give a model that was tuned to follow instructions."
        )
    start, texts = _own_start(speaker), {}
    for prompt in dict.fromkeys(prompts):
        content: Any = [{"type": "image"}, {"type": "text", "text": prompt}] if image else prompt
        message = {"role": "user", "content": content}
        text = str(speaker.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
        texts[prompt] = text.removeprefix(start)
    return texts


def _own_start(speaker: Any) -> str:
    """The start of text that the tokenizer adds by itself: many templates hold it as well, and it must not double."""
    tokenizer = getattr(speaker, "tokenizer", speaker)
    start: str | None = tokenizer.bos_token
    if start and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
        return start
    return ""


def context_length(address: str) -> int | None:
    """Tokens that the model's configuration allows, if it is a folder that says so."""
    if not (Path(address) / "config.json").is_file():
        return None
    config = _config(address)
    length: int | None = config.get("text_config", config).get("max_position_embeddings")
    return length


def parameter_count(address: str) -> float | None:
    """Parameters of a model by the size of its weights, without loading it; None where it is no folder with weights."""
    weights_bytes = sum(path.stat().st_size for path in Path(address).glob("*.safetensors"))
    if not weights_bytes:
        return None
    config = _config(address)
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return weights_bytes / (4 if dtype == "float32" else 2)


def image_places(address: str) -> int:
    """Tokens that an image takes of a model's context, where its configuration says so; else a usual number."""
    places: int = _config(address).get("image_seq_length") or _USUAL_PLACES
    return places


def _config(address: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(address) / "config.json").read_text(encoding="utf-8"))
    return config


def _processor(address: str, setting: str) -> Any:
    """The model's processor (images and text), or its tokenizer where it has none."""
    transformers: Any = importlib.import_module("transformers")  # takes seconds
    try:
        name, revision = address, None
        if not Path(address).is_dir():
            name, revision = split_revision(address)
        return transformers.AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Setting {setting}={address!r} cannot be loaded ({reason}): give a folder in transformers' layout, or the "
            "name of a model of the hub that is within reach and needs no code of its own."
        ) from error
