"""The frozen CLIP: any model of open_clip behind one small interface.

Legend: N images, B batch, C classes, T texts, D width of the shared space, S image side in px.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.data.classes import fill_template
from raydapt.data.decode import ImageSpec
from raydapt.errors import UserError
from raydapt.models import lend_transformers, passed_over
from raydapt.models.clip_names import (
    RANDOM,
    TRANSFORMERS,
    FoundClip,
    find_clip,
    matters,
    not_loaded,
    quiet_log,
)
from raydapt.models.file_tokenizer import FileTokenizer, is_one_file
from raydapt.models.hugging_face_text import text_tower_of
from raydapt.models.text_tower import require_whole_prompts
from raydapt.models.transformers_clip import Loaded, load_transformers_clip
from raydapt.models.weight_files import load_weights, read_weights
from raydapt.store.fingerprint import files_digest

_RANDOM_SEED = 0
_TEXTS_PER_CHUNK = 256


class Clip(nn.Module):
    """A frozen open_clip model, in evaluation mode, with its pre-processing and tokenizer.

    Attributes:
        name: The name it was loaded by.
        identity: What its outputs depend on; part of every fingerprint.
        image_spec: How an image becomes the pixels that `encode_image` takes.
        model: The open_clip model.
        text_tower: Its text half.
        embed_dim: Width D of the space that images and texts share.
        logit_scale: Factor from cosine to logit (the exponential already taken), at most 100 as in CLIP's training.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, name: str, identity: str, image_spec: ImageSpec, embed_dim: int
    ) -> None:
        super().__init__()
        self.name, self.identity, self.image_spec, self.embed_dim = name, identity, image_spec, embed_dim
        self.model: Any
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.text_tower = text_tower_of(model, tokenizer)
        self.logit_scale = min(float(self.model.logit_scale.exp()), 100.0)
        for key, value in (("mean_311", image_spec.mean), ("std_311", image_spec.std)):
            self.register_buffer(key, torch.tensor(value, dtype=torch.float32).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean_311.device

    def normalise_pixels(self, pixel_B3SS: Tensor) -> Tensor:
        """uint8 pixels to the float32 input of the image tower, on the model's device."""
        return (pixel_B3SS.to(self.device).to(torch.float32) / 255 - self.mean_311) / self.std_311

    def encode_image(self, pixel_B3SS: Tensor) -> Tensor:
        """L2-normalised float32 features [B, D] of uint8 pixels."""
        feature_BD = self.model.encode_image(self.normalise_pixels(pixel_B3SS))
        return F.normalize(feature_BD.to(torch.float32), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 features [T, D]; texts are cropped to the longest of their chunk."""
        chunks = [
            self.text_tower.encode_tokens(self.text_tower.tokenize(texts[start : start + _TEXTS_PER_CHUNK]))
            for start in range(0, len(texts), _TEXTS_PER_CHUNK)
        ]
        return F.normalize(torch.cat(chunks).to(torch.float32), dim=-1)

    @torch.no_grad()
    def class_embeddings(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Class embeddings [C, D]: the normalised mean of a class's normalised text features over the templates.

        Raises:
            UserError: If a prompt has more tokens than the tower can read, or two names are one text to it.
        """
        require_whole_prompts(self.text_tower, class_names, templates)
        texts = [fill_template(template, name) for name in class_names for template in templates]
        feature_CTD = self.encode_text(texts).reshape(len(class_names), len(templates), -1)
        return F.normalize(feature_CTD.mean(dim=1), dim=-1)


class OnClip(nn.Module):
    """A module that reads a frozen `Clip` without owning it.

    The model is neither in `parameters()` nor in `state_dict()` nor switched to training mode, so optimisers,
    checkpoints and gradient synchronisation see what is learned alone; it does follow to another device.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self._frozen = (clip,)  # a tuple, which torch does not look into for submodules

    @property
    def clip(self) -> Clip:
        """The frozen model."""
        return self._frozen[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnClip:
        self.clip._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def load_clip(name: str, *, device: str | torch.device = "cpu") -> Clip:
    """Loads a CLIP model.

    Args:
        name: `mini`; a folder in open_clip's or transformers' layout; the name of either on the hub, as ``ORG/NAME`` or
            ``hf-hub:ORG/NAME``, with ``@REVISION`` behind it if one is meant; or open_clip's `ARCHITECTURE/PRETRAINED`,
            where PRETRAINED is a tag, a weights file, or `random`.
        device: Where to put it.

    Raises:
        UserError: When there is no such model, or it cannot be fetched.
    """
    found = find_clip(name)
    if found.folder is not None and found.kind == TRANSFORMERS:
        loaded = load_transformers_clip(found.folder, setting=_setting(name))
    else:
        loaded = _load_open_clip(name, found)
    spec = _image_spec(name, loaded.preprocess)
    identity = clip_identity(name)
    clip = Clip(
        loaded.model, loaded.tokenizer, name=name, identity=identity, image_spec=spec, embed_dim=loaded.embed_dim
    )
    return clip.to(device)


def _load_open_clip(name: str, found: FoundClip) -> Loaded:
    model_name, pretrained = found.model_name, found.pretrained
    try:
        with quiet_log():
            config = open_clip.get_model_config(model_name) or {}
            if "hf_model_name" in config.get("text_cfg", {}):
                lend_transformers()
            if pretrained == RANDOM:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(_RANDOM_SEED)
                    model = open_clip.create_model(model_name, pretrained=None, pretrained_image=False)
            elif found.weights is not None:
                model = open_clip.create_model(
                    model_name, load_weights=False, pretrained_image=False, pretrained_text=False, **found.forced
                )
                weights = read_weights(found.weights, setting=_setting(name))
                load_weights(model, weights, found.weights, setting=_setting(name))
            else:
                model = open_clip.create_model(
                    model_name, pretrained=pretrained, require_pretrained=True, **found.forced
                )
            tokenizer = _tokenizer(model_name, found.folder, config.get("text_cfg", {}))
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise not_loaded(name, found, error) from error
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        preprocess=open_clip.get_model_preprocess_cfg(model),
        embed_dim=int(open_clip.get_model_config(model_name)["embed_dim"]),
    )


def _tokenizer(model_name: str, folder: Path | None, text_config: Mapping[str, Any]) -> Any:
    options = dict(text_config.get("tokenizer_kwargs", {}))
    if text_config.get("hf_tokenizer_name") and is_one_file(folder) and set(options) <= {"clean"}:
        length = int(text_config.get("context_length", DEFAULT_CONTEXT_LENGTH))
        return FileTokenizer(folder, context_length=length, clean=options.get("clean", "whitespace"))
    with passed_over("sklearn"):
        return open_clip.get_tokenizer(model_name)


def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompt wordings that OpenAI published for ImageNet, with ``{}`` in the place of the name."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def clip_identity(name: str) -> str:
    """What the outputs of a model depend on, without loading it.

    Returns:
        For a folder, a digest of its weights, configuration and tokenizer, wherever it lies; for a weights file, of
        the file; for a name of the hub, the name and open_clip's version.
    """
    found = find_clip(name, fetch=False)
    if found.folder is not None and not found.of_hub:
        files = [path for path in sorted(found.folder.iterdir()) if path.is_file() and matters(path)]
        return files_digest(files, found.folder)
    if found.weights is not None:
        own = (open_clip.get_model_config(found.model_name) or {}).get("quick_gelu")
        gelu = ":quick_gelu" if found.forced["force_quick_gelu"] and not own else ""
        return f"{found.model_name}:{files_digest([found.weights], found.weights.parent)}{gelu}"
    return f"{name}@open_clip-{open_clip.__version__}"


def _setting(name: str) -> str:
    return f"Setting model.clip={name!r}"


def _image_spec(name: str, settings: dict[str, Any]) -> ImageSpec:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if height != width:
        raise UserError(f"Setting model.clip={name!r} takes images of {height} x {width} px: choose a square model.")
    mean, std = tuple(map(float, settings["mean"])), tuple(map(float, settings["std"]))
    mode, interpolation = str(settings["resize_mode"]), str(settings["interpolation"])
    # "random" is for training; open_clip itself evaluates with bicubic then.
    interpolation = "bicubic" if interpolation == "random" else interpolation
    if mode == "longest" and settings.get("fill_color", 0):
        raise UserError(
            f"Setting model.clip={name!r} pads images with {settings['fill_color']}, which is not done here: set "
            "fill_color to 0 in its preprocess_cfg, or take another model."
        )
    try:
        return ImageSpec(
            size_px=int(height),
            resize_mode=mode,
            interpolation=interpolation,
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
        )
    except ValueError:
        raise UserError(
            f"Setting model.clip={name!r} prepares images by {mode!r} and {interpolation!r}, which is not done here: "
            "correct its preprocess_cfg."
        ) from None
