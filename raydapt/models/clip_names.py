"""What a name of ``model.clip`` stands for: a folder, a file of weights, a model of the hub, or a name of open_clip."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip

from raydapt.errors import UserError
from raydapt.models.hub import fetch_file, fetch_folder, hub_cache, is_unreachable, split_revision
from raydapt.models.transformers_clip import is_transformers_folder, model_type
from raydapt.models.weight_files import WEIGHT_SUFFIXES, check_safetensors

MINI = Path(__file__).parent / "mini" / "clip"
CONFIG_FILE = "open_clip_config.json"
RANDOM = "random"
"""`ARCHITECTURE/random`: no pre-trained weights, for speed measurements and tests."""
OPEN_CLIP, TRANSFORMERS = "open_clip", "transformers"
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece")
_OF_TRANSFORMERS = ("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_WAYS = (
    f"give 'mini', a folder with {CONFIG_FILE} or transformers' config.json, a name of the hub such as "
    "openai/clip-vit-base-patch32, ARCHITECTURE/PRETRAINED of open_clip such as ViT-B-32/openai, or "
    "ARCHITECTURE/PATH of a weights file."
)


@dataclass(frozen=True, kw_only=True)
class FoundClip:
    """What a name stands for."""

    kind: str = OPEN_CLIP
    """``open_clip`` or ``transformers``: the layout."""
    folder: Path | None = None
    model_name: str = ""
    """For `open_clip.create_model`."""
    pretrained: str | None = None
    """Tag of open_clip, or `RANDOM`."""
    weights: Path | None = None
    """The file of the weights, where it is known."""
    forced: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `open_clip.create_model`."""
    of_hub: str = ""
    """Name on the hub."""


def find_clip(name: str, *, fetch: bool = True) -> FoundClip:
    """Finds out what a name stands for.

    Args:
        name: See `raydapt.models.clip.load_clip`.
        fetch: Whether the files of a name of the hub are wanted; without, nothing is asked of the hub.

    Raises:
        UserError: If it stands for nothing, or the hub's files cannot be had.
    """
    folder = MINI if name == "mini" else Path(name.removeprefix("local-dir:")).expanduser()
    if folder.is_dir():
        return _in_folder(name, folder)
    if folder.is_file():
        return _of_file(name, folder)
    if name.startswith(("/", "./", "../", "~", "local-dir:")) and "hf-hub:" not in name:
        raise UserError(f"Setting model.clip={name!r}: there is no such folder and no such file; check the path.")
    if name.startswith("hf-hub:"):
        return _of_hub(name, name.removeprefix("hf-hub:"), fetch=fetch)
    parts = name.split("/")
    for n_parts in range(len(parts) - 1, 0, -1):  # open_clip also writes ViT-B-32 as ViT-B/32
        architecture, pretrained = "-".join(parts[:n_parts]), "/".join(parts[n_parts:])
        if architecture in open_clip.list_models():
            return _of_open_clip(name, architecture, pretrained)
    if _HUB_NAME.fullmatch(name):
        return _of_hub(name, name, fetch=fetch)
    raise UserError(f"Setting model.clip={name!r} is no model: {_WAYS}")


def _of_open_clip(name: str, architecture: str, pretrained: str) -> FoundClip:
    if pretrained == RANDOM:
        return FoundClip(model_name=architecture, pretrained=RANDOM)
    # Weights that were trained with the quick GELU are wrong with the other one.
    known = open_clip.pretrained.get_pretrained_cfg(architecture, pretrained)
    if known:
        forced = {"force_quick_gelu": bool(known.get("quick_gelu"))}
        return FoundClip(model_name=architecture, pretrained=pretrained, forced=forced)
    file = Path(pretrained).expanduser()
    if not file.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:8])
        raise UserError(
            f"Setting model.clip={name!r}: {pretrained!r} is neither a file nor a tag of {architecture} ({tags}, …)."
        )
    _check(name, file)
    return FoundClip(model_name=architecture, weights=file, forced=family_arguments(architecture, pretrained))


def _in_folder(name: str, folder: Path) -> FoundClip:
    for file in folder.glob("*.safetensors"):
        _check(name, file)
    if (folder / CONFIG_FILE).is_file():
        weights = open_clip.factory._find_checkpoint_in_dir(folder) or next(iter(sorted(folder.glob("*.pt"))), None)
        if weights is None:
            raise UserError(
                f"Setting model.clip={name!r}: the folder has no weights ({', '.join(WEIGHT_SUFFIXES)}); give a whole "
                "model folder."
            )
        folder = folder.resolve()
        return FoundClip(folder=folder, model_name=f"local-dir:{folder}", weights=Path(weights))
    if is_transformers_folder(folder):
        return FoundClip(kind=TRANSFORMERS, folder=folder.resolve())
    kind = model_type(folder)
    if kind is None:
        raise UserError(
            f"Setting model.clip={name!r}: the folder has neither {CONFIG_FILE} nor transformers' config.json; give a "
            "folder in one of these layouts."
        )
    more = ", whose images have no fixed size" if kind == "siglip2" else ""
    raise UserError(
        f"Setting model.clip={name!r} holds a model of type {kind!r}{more}: give a CLIPModel or SiglipModel of "
        "transformers (SigLIP 2 with a fixed size is one), or a folder in open_clip's layout."
    )


def _of_file(name: str, file: Path) -> FoundClip:
    """A weights file alone: its architecture stands in its name, as in OpenAI's and many others'."""
    if file.suffix not in WEIGHT_SUFFIXES:
        raise UserError(f"Setting model.clip={name!r} is no file of weights ({', '.join(WEIGHT_SUFFIXES)}): {_WAYS}")
    stem = file.stem.replace("@", "-").replace("336px", "336").lower()
    among = [one for one in open_clip.list_models() if one.lower() in stem]
    if not among:
        raise UserError(
            f"Setting model.clip={name!r} is a file of weights whose name tells no architecture: write "
            f"ARCHITECTURE/{name.lstrip('/')}, such as ViT-B-32/{file.name}."
        )
    _check(name, file)
    architecture = max(among, key=len)
    return FoundClip(model_name=architecture, weights=file, forced=family_arguments(architecture, file.name))


def _of_hub(name: str, address: str, *, fetch: bool) -> FoundClip:
    """A repository in open_clip's layout, else in transformers'."""
    repository, revision = split_revision(address)
    if not fetch:
        return FoundClip(model_name=f"hf-hub:{repository}", of_hub=repository)
    setting = f"Setting model.clip={name!r}"
    config = fetch_file(repository, CONFIG_FILE, revision=revision)
    tokenizer = [f"{start}*" for start in _TOKENIZER_FILES]
    if config is not None:
        names = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        weights = next((file for one in names if (file := fetch_file(repository, one, revision=revision))), None)
        if weights is not None:
            fetch_folder(repository, tokenizer, revision=revision, setting=setting)
            return FoundClip(
                folder=config.parent, model_name=f"local-dir:{config.parent}", weights=weights, of_hub=repository
            )
    folder = fetch_folder(repository, [*_OF_TRANSFORMERS, *tokenizer], revision=revision, setting=setting)
    if not is_transformers_folder(folder):
        kind = model_type(folder)
        held = f"holds a model of type {kind!r}" if kind else "holds no configuration that is known"
        raise UserError(f"{setting} {held}: give a CLIPModel or SiglipModel of transformers, or a model of open_clip.")
    if not any(folder.glob("model*.safetensors")):
        fetch_file(repository, "pytorch_model.bin", revision=revision)
    return FoundClip(kind=TRANSFORMERS, folder=folder, of_hub=repository)


def family_arguments(architecture: str, file: str) -> dict[str, Any]:
    """How the weights of a file want their images and their GELU, as far as open_clip's own weights tell.

    open_clip prepares images for any file as OpenAI's models want them. What all known weights of an architecture have
    in common is that of the file too. The quick GELU is that of the weights whose tag stands in the file's name (such
    as ``openai``, ``metaclip`` or ``dfn2b``), else what all of them have in common, else that of the architecture.
    """
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    cfgs = {tag: open_clip.pretrained.get_pretrained_cfg(architecture, tag) for tag in tags}
    prepared: dict[str, Any] = {}
    for key in ("mean", "std", "interpolation", "resize_mode"):
        values = {cfg.get(key) for cfg in cfgs.values()}
        if len(values) == 1 and (value := values.pop()) is not None:
            prepared[key] = value
    stem = re.sub(r"[-_.]", "", Path(file).stem.lower())
    named = [cfg for tag, cfg in cfgs.items() if re.split(r"[-_]", tag)[0].lower() in stem]
    quick = {bool(cfg.get("quick_gelu")) for cfg in named or cfgs.values()}
    return {"force_preprocess_cfg": prepared, "force_quick_gelu": quick == {True}}


def matters(path: Path) -> bool:
    """Whether a file of a model folder changes what the model computes (its card does not)."""
    configs = (CONFIG_FILE, "config.json", "preprocessor_config.json")
    if path.name in configs[1:] and (path.parent / CONFIG_FILE).is_file():
        return False  # beside open_clip's own they are not read
    return path.name in configs or path.suffix in WEIGHT_SUFFIXES or path.name.startswith(_TOKENIZER_FILES)


def not_loaded(name: str, found: FoundClip, error: Exception) -> UserError:
    """Why a model cannot be loaded, with the way to fetch one that the hub would have."""
    if is_unreachable(error) and found.pretrained:
        known = open_clip.pretrained.get_pretrained_cfg(found.model_name, found.pretrained)
        repository = "/".join(str(known.get("hf_hub", "")).split("/")[:2]).strip("/")
        if repository:
            return UserError(
                f"Setting model.clip={name!r} is not in the cache ({hub_cache()}), and the model hub cannot be "
                f"reached: run `hf download {repository}` where it can, copy the cache here or point HF_HOME at it; or "
                "give the path of a model folder."
            )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = " ".join(lines[0].split()[:40])
    return UserError(
        f"Setting model.clip={name!r} cannot be loaded ({reason}): check the name, the weights and the network."
    )


@contextmanager
def quiet_log() -> Iterator[None]:
    """Leaves to our sentence what open_clip logs of a failure before it raises it."""
    logger = logging.getLogger()
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check(name: str, file: Path) -> None:
    if file.suffix == ".safetensors":
        check_safetensors(file, setting=f"Setting model.clip={name!r}")
