"""The frozen CLIP: any model of open_clip behind one small interface.

Legend: N images, B batch, C classes, T texts, D width of the shared space, S image side in px.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.data.classes import fill_template
from raydapt.data.decode import ImageSpec
from raydapt.errors import UserError
from raydapt.models import lend_transformers, passed_over
from raydapt.models.hugging_face_text import text_tower_of
from raydapt.models.text_tower import require_whole_prompts
from raydapt.store.fingerprint import files_digest

MINI = Path(__file__).parent / "mini" / "clip"
CONFIG_FILE = "open_clip_config.json"
RANDOM = "random"
"""`ARCHITECTURE/random`: no pre-trained weights, for speed measurements and tests."""
_RANDOM_SEED = 0
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece")
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
        name: `mini`; a folder with `open_clip_config.json`, weights and tokenizer; `hf-hub:ORG/NAME`; or open_clip's
            `ARCHITECTURE/PRETRAINED`, where PRETRAINED is a tag, a weights file, or `random`.
        device: Where to put it.

    Raises:
        UserError: When there is no such model, or it cannot be fetched.
    """
    arguments = _open_clip_arguments(name)
    model_name, pretrained = arguments["model_name"], arguments["pretrained"]
    try:
        if "hf_model_name" in (open_clip.get_model_config(model_name) or {}).get("text_cfg", {}):
            lend_transformers()
        if pretrained == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_RANDOM_SEED)
                model = open_clip.create_model(model_name, pretrained=None, pretrained_image=False)
        else:
            model = open_clip.create_model(**arguments, require_pretrained=True)
        with passed_over("sklearn"):
            tokenizer = open_clip.get_tokenizer(model_name)
        embed_dim = int(open_clip.get_model_config(model_name)["embed_dim"])
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Setting model.clip={name!r} cannot be loaded ({_first_line(error)}): check the name, and that the "
            "weights are there or the model hub can be reached."
        ) from error
    spec = _image_spec(name, open_clip.get_model_preprocess_cfg(model))
    clip = Clip(model, tokenizer, name=name, identity=clip_identity(name), image_spec=spec, embed_dim=embed_dim)
    return clip.to(device)


def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompt wordings that OpenAI published for ImageNet, with ``{}`` in the place of the name."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def clip_identity(name: str) -> str:
    """What the outputs of a model depend on, without loading it.

    Returns:
        For a folder, a digest of its weights, configuration and tokenizer, wherever it lies; for a weights file, of
        the file; for a name of the hub, the name and open_clip's version.
    """
    folder = _folder(name)
    if folder is not None:
        return files_digest((path for path in sorted(folder.iterdir()) if path.is_file() and _matters(path)), folder)
    arguments = _open_clip_arguments(name)
    weights = Path(arguments["pretrained"] or "")
    if arguments["pretrained"] and weights.is_file():
        own = (open_clip.get_model_config(arguments["model_name"]) or {}).get("quick_gelu")
        gelu = ":quick_gelu" if arguments["force_quick_gelu"] and not own else ""
        return f"{arguments['model_name']}:{files_digest([weights], weights.parent)}{gelu}"
    return f"{name}@open_clip-{open_clip.__version__}"


def _open_clip_arguments(name: str) -> dict[str, Any]:
    """The arguments of `open_clip.create_model` that a name stands for."""
    folder = _folder(name)
    if folder is not None:
        return {"model_name": f"local-dir:{folder}", "pretrained": None}
    if name.startswith("hf-hub:"):
        return {"model_name": name, "pretrained": None}
    parts = name.split("/")
    for n_parts in range(len(parts) - 1, 0, -1):  # open_clip also writes ViT-B-32 as ViT-B/32
        architecture, pretrained = "-".join(parts[:n_parts]), "/".join(parts[n_parts:])
        if architecture in open_clip.list_models():
            # Weights that were trained with the quick GELU are wrong with the other one.
            known = open_clip.pretrained.get_pretrained_cfg(architecture, pretrained)
            arguments = {"model_name": architecture, "pretrained": pretrained}
            if not known and pretrained != RANDOM:
                return arguments | _family_arguments(architecture, pretrained)
            return arguments | {"force_quick_gelu": bool(known.get("quick_gelu"))}
    raise UserError(
        f"Setting model.clip={name!r} is no model: give 'mini', a folder with {CONFIG_FILE}, hf-hub:ORG/NAME, or "
        "ARCHITECTURE/PRETRAINED of open_clip, such as ViT-B-32/openai."
    )


def _family_arguments(architecture: str, file: str) -> dict[str, Any]:
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


def _folder(name: str) -> Path | None:
    """The folder that a name stands for; None when it stands for something else."""
    if name == "mini":
        return MINI
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if not folder.is_dir():
        if name.startswith(("/", "./", "../", "~", "local-dir:")) and "hf-hub:" not in name:
            raise UserError(f"Setting model.clip={name!r}: there is no such folder; give the path of a model folder.")
        return None
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"Setting model.clip={name!r}: the folder has no {CONFIG_FILE}; give a folder in open_clip's layout."
        )
    return folder.resolve()


def _matters(path: Path) -> bool:
    """Whether a file of a model folder changes what the model computes (its card does not)."""
    return path.name == CONFIG_FILE or path.suffix in _WEIGHT_SUFFIXES or path.name.startswith(_TOKENIZER_FILES)


def _image_spec(name: str, settings: dict[str, Any]) -> ImageSpec:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if height != width:
        raise UserError(f"Setting model.clip={name!r} takes images of {height} x {width} px: choose a square model.")
    mean, std = tuple(map(float, settings["mean"])), tuple(map(float, settings["std"]))
    return ImageSpec(
        size_px=int(height),
        resize_mode=str(settings["resize_mode"]),
        interpolation=str(settings["interpolation"]),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def _first_line(error: Exception) -> str:
    """The first line of a fault of open_clip, bounded: it may list every model there is."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
