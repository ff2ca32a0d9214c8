"""Encoders of images alone: a vision model of timm, open_clip or transformers, behind the part of `Clip` that encodes.

Legend: B batch, D width of the feature, T tokens, R stored side in px, S the model's side in px, H and W of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.data.decode import ImageSpec
from raydapt.errors import UserError
from raydapt.models import passed_over
from raydapt.models.clip import Clip
from raydapt.models.frozen import shared_clip
from raydapt.models.vision_names import VisionName, vision_name
from raydapt.progress import said_if_slow

_LOAD_ERRORS = (RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
_RESIZE_MODE = {"center": "shortest", "squash": "squash", "border": "longest"}
"""timm's names for what `ImageSpec` calls otherwise."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PIL_BILINEAR = 2


@dataclass(frozen=True)
class _Preparation:
    """How images reach a model: stored as `spec` says, then cut to the middle `side_px`."""

    spec: ImageSpec
    side_px: int


class VisionEncoder(nn.Module):
    """A frozen vision model in evaluation mode with its own preparation of images.

    Attributes:
        identity: What its outputs depend on.
        image_spec: How an image becomes the pixels that `encode_image` takes.
        embed_dim: Width D of its features.
        model: The model.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self, model: nn.Module, features_of: Callable[[Tensor], Tensor], prepared: _Preparation, identity: str
    ) -> None:
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        self.identity, self.image_spec, self._side_px = identity, prepared.spec, prepared.side_px
        self._features_of = features_of
        for key, value in (("mean_311", prepared.spec.mean), ("std_311", prepared.spec.std)):
            self.register_buffer(key, torch.tensor(value, dtype=torch.float32).view(3, 1, 1), persistent=False)
        with torch.inference_mode():
            blank_13RR = torch.zeros(1, 3, self.image_spec.size_px, self.image_spec.size_px, dtype=torch.uint8)
            self.embed_dim = int(self.encode_image(blank_13RR).shape[1])

    def encode_image(self, pixel_B3RR: Tensor) -> Tensor:
        """L2-normalised float32 features [B, D] of uint8 pixels."""
        start = (pixel_B3RR.shape[-1] - self._side_px) // 2
        stop = start + self._side_px
        pixel_B3SS = pixel_B3RR[..., start:stop, start:stop].to(self.mean_311.device)
        image_B3SS = (pixel_B3SS.to(torch.float32) / 255 - self.mean_311) / self.std_311
        return F.normalize(self._features_of(image_B3SS).to(torch.float32), dim=-1)


def shared_vision(name: str, *, device: str | torch.device = "cpu") -> VisionEncoder | Clip:
    """The encoder of a name, loaded once a process; of a CLIP its image half counts alone.

    Args:
        name: See `raydapt.models.vision_names.vision_name`.
        device: Where to put it.

    Raises:
        UserError: When there is no such model, or it cannot be fetched.
    """
    found = vision_name(name)
    if found.library == "open_clip":
        try:
            return shared_clip(found.model, device=device)
        except UserError as error:
            raise UserError(str(error).replace("model.clip", "model.second")) from None
    return _loaded(found, str(device))


@lru_cache(maxsize=1)
def _loaded(found: VisionName, device: str) -> VisionEncoder:
    load = _load_timm if found.library == "timm" else _load_transformers
    with said_if_slow(f"loading the model {found.given} …"):
        try:
            return load(found).to(device)
        except _LOAD_ERRORS as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"Setting model.second={found.given!r} cannot be loaded by {found.library} ({first}): check the name; "
                "without a network fetch it elsewhere with 'hf download ORG/NAME --local-dir FOLDER' and give the "
                "folder."
            ) from error


def _load_timm(found: VisionName) -> VisionEncoder:
    import timm
    from timm.data.config import resolve_model_data_config

    if found.weights is not None:
        model = timm.create_model(found.model, checkpoint_path=str(found.weights))
    else:
        model = timm.create_model(found.model, pretrained=True)
    bare: Any = model
    bare.reset_classifier(0)
    wanted: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    side, crop = int(wanted["input_size"][-1]), float(wanted["crop_pct"])
    interpolation = wanted["interpolation"]
    spec = ImageSpec(
        size_px=max(side, int(side / crop)),
        resize_mode=_RESIZE_MODE.get(wanted["crop_mode"], "shortest"),
        interpolation=interpolation if interpolation in ("bicubic", "bilinear") else "bicubic",
        mean=_three(wanted["mean"]),
        std=_three(wanted["std"]),
    )
    return VisionEncoder(model, model, _Preparation(spec, side), found.identity)


def _load_transformers(found: VisionName) -> VisionEncoder:
    with passed_over("sklearn"):
        import transformers
    config = transformers.AutoConfig.from_pretrained(found.model)
    if hasattr(config, "mask_ratio"):  # masked auto-encoders hide patches in use, too
        config.mask_ratio = 0.0
    model = transformers.AutoModel.from_pretrained(found.model, config=config, dtype=torch.float32)
    vision = getattr(config, "vision_config", config)
    settings, _ = transformers.ImageProcessingMixin.get_image_processor_dict(found.model)
    prepared = _preparation_of(settings, int(getattr(vision, "image_size", 224)))
    both = hasattr(model, "get_image_features")
    has_class_token = any("cls_token" in name or "class_embedding" in name for name, _ in model.named_parameters())

    def features_of(image_B3SS: Tensor) -> Tensor:
        found = model.get_image_features(pixel_values=image_B3SS) if both else model(pixel_values=image_B3SS)
        return found if isinstance(found, Tensor) else _pooled(found, both, has_class_token)

    return VisionEncoder(model, features_of, prepared, found.identity)


def _pooled(output: Any, both: bool, has_class_token: bool) -> Tensor:
    """One vector an image: the pooled one of a CLIP, the class token, else the mean of all tokens or places.

    A pooler behind the class token of a plain transformer is passed over, since many checkpoints come without one.
    """
    if both and output.pooler_output is not None:
        pooled: Tensor = output.pooler_output
        return pooled
    last: Tensor = output.last_hidden_state
    if last.ndim == 4:
        return last.mean(dim=(2, 3))
    return last[:, 0] if has_class_token else last.mean(dim=1)


def _preparation_of(settings: dict[str, Any], image_size: int) -> _Preparation:
    """What a ``preprocessor_config.json`` says: shorter side and middle, or both sides squashed."""
    size = settings.get("size") or image_size
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    crop_px = crop if isinstance(crop, int) or crop is None else int(crop["height"])
    squashed = "shortest_edge" not in size
    resized = int(size["height" if squashed else "shortest_edge"])
    spec = ImageSpec(
        size_px=max(resized, crop_px or 0),
        resize_mode="squash" if squashed else "shortest",
        interpolation="bilinear" if settings.get("resample") == _PIL_BILINEAR else "bicubic",
        mean=_three(settings.get("image_mean") or _IMAGENET_MEAN),
        std=_three(settings.get("image_std") or _IMAGENET_STD),
    )
    return _Preparation(spec, crop_px or resized)


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
