"""Which library a second encoder's name belongs to, and what its outputs depend on, without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from raydapt.errors import UserError
from raydapt.models.clip import clip_identity
from raydapt.models.clip_names import CONFIG_FILE
from raydapt.store.fingerprint import files_digest

Library = Literal["timm", "open_clip", "transformers"]
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
_WAY_OUT = (
    "give a model of timm (vit_small_patch14_dinov2.lvd142m), open_clip (ARCHITECTURE/PRETRAINED) or transformers "
    "(facebook/dinov2-small), a folder of one, ARCHITECTURE/FILE with weights, or a file of features"
)


@dataclass(frozen=True)
class VisionName:
    """A model that can be loaded.

    Attributes:
        given: The setting.
        library: Who loads it.
        model: Its name for that library.
        weights: A file of weights, where the name is that of an architecture.
        identity: What its outputs depend on.
    """

    given: str
    library: Library
    model: str
    weights: Path | None
    identity: str


def vision_name(name: str) -> VisionName:
    """Finds out what a name stands for.

    Args:
        name: A folder with ``config.json`` (timm, transformers) or ``open_clip_config.json``; a model of timm, with or
            without ``timm/`` before it; ``ARCHITECTURE/PRETRAINED`` of open_clip; ``ARCHITECTURE/FILE`` of timm or
            open_clip; ``ORG/NAME`` of the model hub.

    Raises:
        UserError: If it is none of these, or its description cannot be fetched.
    """
    folder = Path(name).expanduser()
    if name == "mini" or (folder.is_dir() and (folder / CONFIG_FILE).is_file()):
        return VisionName(name, "open_clip", name, None, _open_clip_identity(name))
    if folder.is_dir():
        return _of_folder(name, folder.resolve())
    import open_clip
    import timm

    bare = name.removeprefix("timm/")
    if timm.is_model(bare.partition(".")[0]) and "/" not in bare:
        return VisionName(name, "timm", bare, None, _hub_identity(bare, "timm"))
    architecture, _, file = bare.partition("/")
    if timm.is_model(architecture) and Path(file).expanduser().is_file():
        weights = Path(file).expanduser().resolve()
        identity = f"timm:{architecture}:{files_digest([weights], weights.parent)}"
        return VisionName(name, "timm", architecture, weights, identity)
    if any(name.startswith(f"{known}/") for known in open_clip.list_models()):
        return VisionName(name, "open_clip", name, None, _open_clip_identity(name))
    if name.removeprefix("hf-hub:").count("/") == 1 and not name.startswith((".", "/", "~")):
        return _of_hub(name, name.removeprefix("hf-hub:"))
    raise UserError(f"Setting model.second={name!r} is no model and no file: {_WAY_OUT}.")


def _open_clip_identity(name: str) -> str:
    try:
        return clip_identity(name)
    except UserError as error:  # says the same of the setting of the first encoder
        raise UserError(str(error).replace("Setting model.clip", "Setting model.second")) from error


def _of_folder(name: str, folder: Path) -> VisionName:
    config = folder / _CONFIG
    library = _library_of(_read_json(name, config)) if config.is_file() else None
    if library is None:
        raise UserError(
            f"Setting model.second={name!r}: the folder has neither {CONFIG_FILE} nor a {_CONFIG} of timm or "
            f"transformers: {_WAY_OUT}."
        )
    kept = [path for path in sorted(folder.iterdir()) if path.is_file() and _matters(path)]
    model = f"local-dir:{folder}" if library == "timm" else str(folder)
    return VisionName(name, library, model, None, f"{library}:{files_digest(kept, folder)}")


def _of_hub(name: str, address: str) -> VisionName:
    """By the description that lies at the hub, or in its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in (_CONFIG, CONFIG_FILE):
        try:
            found = Path(hf_hub_download(address, file))
        except LocalEntryNotFoundError:
            break
        except EntryNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError):
            break
        library: Library | None = "open_clip" if file == CONFIG_FILE else _library_of(_read_json(name, found))
        if library is not None:
            hub = address if library == "transformers" else f"hf-hub:{address}"
            return VisionName(name, library, hub, None, _hub_identity(address, library))
    raise UserError(
        f"Setting model.second={name!r} is not in the model cache and cannot be fetched: on a machine with a network "
        f"run 'hf download {address} --local-dir FOLDER', then give the folder."
    )


def _hub_identity(name: str, library: Library) -> str:
    package = {"open_clip": "open_clip_torch"}.get(library, library)
    return f"{name}@{library}-{version(package)}"


def _library_of(config: dict[str, Any]) -> Library | None:
    if "model_type" in config:
        return "transformers"
    return "timm" if "architecture" in config else None


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"Setting model.second={name!r}: {path.name} cannot be read as JSON: fetch it anew.") from None
    return config


def _matters(path: Path) -> bool:
    return path.name in (_CONFIG, _PROCESSOR) or path.suffix in _WEIGHT_SUFFIXES
