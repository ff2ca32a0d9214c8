"""Diffusion pipelines by name: where they lie, what they are, and how they are loaded.

The classes below were tried with small random weights; of others nobody knows what settings of ours mean to them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from raydapt.errors import UserError
from raydapt.models.hub import fetch_file, hub_cache, split_revision
from raydapt.models.quantized import require_fp8_units, require_torchao
from raydapt.models.weight_files import check_safetensors
from raydapt.progress import said_if_slow
from raydapt.settings.groups import DenoiserPrecision
from raydapt.store.fingerprint import files_digest

MINI = Path(__file__).parent / "mini" / "diffusion"
INDEX_FILE = "model_index.json"
SETTING = "synthesis.pipeline"
STABLE_DIFFUSION = "StableDiffusionPipeline"
_FLUX, _SANA, _LCM = "FluxPipeline", "SanaPipeline", "LatentConsistencyModelPipeline"
KINDS = (STABLE_DIFFUSION, "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", _FLUX, "PixArtAlphaPipeline",
         "PixArtSigmaPipeline", _SANA, _LCM)  # fmt: skip
OWN_SAMPLER = ("StableDiffusion3Pipeline", _FLUX, _SANA, _LCM)
"""Kinds that keep the sampler that they come with: those of flow matching, and latent consistency."""
_NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
_UNUSED_FILES = (".md", ".png", ".jpg", ".gitattributes")
_FAULTS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True, kw_only=True)
class FoundPipeline:
    """What a name stands for."""

    name: str
    kind: str
    """Class in diffusers."""
    folder: Path | None
    """None for a name of the hub."""
    repository: str = ""
    revision: str | None = None
    absent: tuple[str, ...] = ()
    """Parts that it does without, such as Stable Diffusion 3's third text encoder."""

    @property
    def denoiser(self) -> str:
        """The part that predicts noise or velocity."""
        return "unet" if self.kind in (STABLE_DIFFUSION, "StableDiffusionXLPipeline", _LCM) else "transformer"

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part.

        Raises:
            UserError: If it cannot be had.
        """
        file = f"{part}/config.json"
        path = self.folder / file if self.folder else fetch_file(self.repository, file, revision=self.revision)
        try:
            found: dict[str, Any] = json.loads(path.read_text()) if path is not None else {}
        except (OSError, ValueError) as error:
            raise not_loaded(self.name, error) from error
        if not found:
            raise _not_in_cache(self.name, self.repository, self.revision)
        return found


def find_pipeline(name: str) -> FoundPipeline:
    """Finds out what a name stands for: `mini`, a folder in diffusers' layout, or ``ORG/NAME@REVISION`` of the hub.

    Raises:
        UserError: If it is none of the pipelines that are known here, a part of it is missing, or it cannot be had.
    """
    folder = MINI if name == "mini" else Path(name).expanduser()
    if folder.is_file():
        raise UserError(
            f"Setting {SETTING}={name!r} is a single file: make a folder of it with from_single_file(…) and "
            "save_pretrained(…) of diffusers, and give that."
        )
    if not folder.is_dir():
        if name.startswith(("/", "./", "../", "~")) or name.count("/") != 1:
            raise UserError(f"Setting {SETTING}={name!r}: there is no such folder; give a pipeline's folder.")
        return _of_hub(name)
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"Setting {SETTING}={name!r}: the folder has no {INDEX_FILE}; give a folder in diffusers' layout."
        )
    index = json.loads((folder / INDEX_FILE).read_text())
    _check_kind(name, index.get("_class_name"))
    parts = [part for part, of in index.items() if isinstance(of, list) and of[0] and part not in _NOT_NEEDED]
    missing = [part for part in parts if not any(folder.glob(f"{part}/*"))]
    if missing:
        raise UserError(
            f"Setting {SETTING}={name!r}: the folder lacks {', '.join(f'{part}/' for part in missing)}; give a whole "
            f"{index['_class_name']} folder."
        )
    for file in folder.glob("*/*.safetensors"):
        check_safetensors(file, setting=f"Setting {SETTING}={name!r}")
    found = FoundPipeline(name=name, kind=index["_class_name"], folder=folder.resolve(), absent=_absent(index))
    _check_channels(found)
    return found


@lru_cache
def _of_hub(name: str) -> FoundPipeline:
    repository, revision = split_revision(name)
    index = fetch_file(repository, INDEX_FILE, revision=revision)
    if index is None:
        raise _not_in_cache(name, repository, revision)
    parts = json.loads(index.read_text())
    kind = parts.get("_class_name")
    _check_kind(name, kind)
    return FoundPipeline(
        name=name, kind=kind, folder=None, repository=repository, revision=revision, absent=_absent(parts)
    )


def _absent(index: dict[str, Any]) -> tuple[str, ...]:
    return tuple(part for part, of in index.items() if isinstance(of, list) and of[0] is None)


def _check_kind(name: str, kind: str | None) -> None:
    if kind not in KINDS:
        raise UserError(
            f"Setting {SETTING}={name!r} holds a {kind}, which was never tried here: give one of {', '.join(KINDS)}."
        )


def _check_channels(found: FoundPipeline) -> None:
    """Refuses pipelines that want a picture besides the text, such as those for inpainting."""
    if found.denoiser != "unet":
        return
    takes, gets = found.config("unet").get("in_channels", 4), found.config("vae").get("latent_channels", 4)
    if takes != gets:
        raise UserError(
            f"Setting {SETTING}={found.name!r} takes {takes} channels where noise has {gets}, as models for inpainting "
            "and editing do: give one that makes images of texts alone."
        )


def load_pipeline(name: str, *, device: str | torch.device = "cpu", precision: DenoiserPrecision = "auto") -> Any:
    """Loads a pipeline, without its safety checker, in half precision on a GPU.

    Args:
        name: See `find_pipeline`.
        device: Where to put it.
        precision: What its linear layers are to be multiplied in; they are quantised later, by `ImageMaker`.

    Raises:
        UserError: When there is no such pipeline, a part of it is missing, it cannot be fetched, or neither the device
            nor what is installed has the precision.
    """
    require_fp8_units(precision, torch.device(device))
    require_torchao(precision)
    found = find_pipeline(name)
    # Scales of rows are for products in bfloat16 alone.
    half = torch.float16 if found.denoiser == "unet" and precision != "fp8" else torch.bfloat16
    how: dict[str, Any] = dict.fromkeys(found.absent)
    how |= {"dtype": half if torch.device(device).type == "cuda" else torch.float32}
    if found.kind in (STABLE_DIFFUSION, _LCM):
        how |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if found.kind == "StableDiffusionXLPipeline":
        how["add_watermarker"] = False
    if found.folder is not None and (variant := _variant(found.folder / found.denoiser)):
        how["variant"] = variant
    if found.revision is not None:
        how["revision"] = found.revision
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    kind, where = getattr(diffusers, found.kind), str(found.folder or found.repository)
    try:
        with said_if_slow(f"loading the pipeline {name} …"):
            pipeline: Any = kind.from_pretrained(where, **how)
    except _FAULTS as error:
        raise not_loaded(name, error) from error
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return pipeline.to(device)


def _variant(folder: Path) -> str | None:
    """``fp16`` where a part has files of that variant alone."""
    names = [file.name for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin"))]
    variants = {name.split(".")[1] for name in names if name.count(".") == 2}
    return variants.pop() if len(variants) == 1 and all(name.count(".") == 2 for name in names) else None


def pipeline_identity(name: str) -> str:
    """What the images of a pipeline depend on, without loading it.

    Returns:
        For a folder, a digest of its weights, configurations and tokenizer, wherever it lies; for a name of the hub,
        the name and diffusers' version.
    """
    folder = MINI if name == "mini" else Path(name).expanduser()
    if not folder.is_dir():
        return f"{name}@diffusers-{diffusers.__version__}"
    folder = folder.resolve()
    used = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in _UNUSED_FILES)
    return files_digest(used, folder)


def denoiser_bytes(name: str) -> int:
    """Size of the weights of the part that denoises, without loading it; 0 where the pipeline is no folder."""
    folder = MINI if name == "mini" else Path(name).expanduser()
    found = [*folder.glob("unet/*.safetensors"), *folder.glob("transformer/*.safetensors")] if folder.is_dir() else []
    return sum(path.stat().st_size for path in found)


def native_size_px(name: str) -> int:
    """Side of the images that a pipeline was trained for, from its configuration alone.

    Raises:
        UserError: When the configuration cannot be read.
    """
    found = find_pipeline(name)
    try:
        # Flux has no size of its own and says so in code: 128 latents.
        side = 128 if found.kind == _FLUX else int(found.config(found.denoiser)["sample_size"])
        vae = found.config("vae")
        depth = len(vae.get("block_out_channels") or vae["encoder_block_out_channels"])
    except (KeyError, TypeError, ValueError) as error:
        raise not_loaded(name, error) from error
    return int(side * 2 ** (depth - 1))


def grain_px(pipeline: Any) -> int:
    """What the side of an image must be a multiple of."""
    patch = 1
    if getattr(pipeline, "transformer", None) is not None:
        packed = type(pipeline).__name__ == _FLUX
        patch = 2 if packed else int(pipeline.transformer.config.patch_size)
    least = 32 if type(pipeline).__name__ == _SANA else 8
    return max(least, int(pipeline.vae_scale_factor) * patch)


def require_trainable(name: str) -> None:
    """Refuses to learn a LoRA of a pipeline whose loss is not known here.

    Raises:
        UserError: See above.
    """
    kind = find_pipeline(name).kind
    if kind != STABLE_DIFFUSION:
        raise UserError(
            f"Setting lora.enabled=true learns a LoRA of a {STABLE_DIFFUSION}, and {SETTING}={name!r} is a {kind}: set "
            "lora.enabled=false, or give LoRA weights to synthesis.lora."
        )


def not_loaded(name: str, error: Exception) -> UserError:
    """Why a pipeline cannot be loaded."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"Setting {SETTING}={name!r} cannot be loaded ({lines[0][:200]}): give 'mini', a folder in diffusers' layout, "
        "or a name of the model hub that can be reached."
    )


def _not_in_cache(name: str, repository: str, revision: str | None) -> UserError:
    at = f" --revision {revision}" if revision else ""
    return UserError(
        f"Setting {SETTING}={name!r} cannot be loaded: it is not in the cache ({hub_cache()}) and not to be had from "
        f"the model hub: check the name, run `hf download {repository}{at}` where the hub can be reached and copy the "
        "cache, or give the path of a folder in diffusers' layout."
    )
