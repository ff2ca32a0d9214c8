"""Where a stage is carried out: in this process while its work is small, else on Ray.

Starting Ray and its actors takes some 15 s; a stage of less work than `HERE_S` is over sooner without them. The work is
estimated before anything is made, from the sizes of model and images, and held against the clock after each part.

Legend: P parameters, T tokens or places of a picture that each of them meets.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from raydapt.models.frozen import shared_clip
from raydapt.settings.config import Config

HERE_S = 30.0
"""Stages of less estimated work stay in this process."""
DECODE_S = 0.003
"""Of an image of usual size, on one core."""
ASK_S = 0.01
"""Of a question's image, on one core: decoded, laid out and handed on."""
FEW_CPUS = 8
"""For a GPU: with fewer, ``features.decode=auto`` has images decoded by the GPU."""
_FLOP_PER_S = {"cpu": 5e10, "cuda": 1e13}
"""Of one core, in float32; of a GPU."""
_PX_PER_PLACE = 16
_PX_PER_LATENT, _FOLDED, _BYTES_PER_PARAMETER = 8, 8, 4
"""Stable Diffusion's: most parameters of its UNet lie where the latents are folded."""


def is_small(seconds: float | None) -> bool:
    """Whether so much estimated work is done without Ray; None, what nobody can estimate, is not."""
    return seconds is not None and seconds < HERE_S


def encoding_s(clip_name: str, *, views: int = 1) -> float:
    """Estimated seconds that a CLIP's image tower takes for the views of one image: 2 P T operations each."""
    clip = shared_clip(clip_name)
    return tower_s(clip.model.visual, clip.image_spec.size_px) * views


def tower_s(tower: Any, size_px: int) -> float:
    """Estimated seconds that a vision model takes for one image of a side of `size_px`."""
    patch = getattr(tower, "patch_size", None) or _PX_PER_PLACE
    patch_px: int = patch if isinstance(patch, int) else max(patch)
    places = max(1.0, (size_px / patch_px) ** 2)
    parameters = float(sum(p.numel() for p in tower.parameters()))
    return 2.0 * parameters * places / _FLOP_PER_S[device_kind()]


def drawing_s(unet_bytes: int, *, size_px: int, steps: int, guidance: float) -> float:
    """Estimated seconds of one synthetic image: 2 P T operations a step, twice with guidance (classifier-free)."""
    places = max(1.0, (size_px / _PX_PER_LATENT) ** 2 / _FOLDED)
    passes = steps * (2 if guidance > 1 else 1)
    return 2.0 * unet_bytes / _BYTES_PER_PARAMETER * places * passes / _FLOP_PER_S[device_kind()]


def writing_s(parameters: float, *, tokens: int) -> float:
    """Estimated seconds of a language model for one question and its answer: 2 P T operations."""
    return 2.0 * parameters * tokens / _FLOP_PER_S[device_kind()]


def decide_decode(config: Config) -> Config:
    """The same settings with ``features.decode`` decided: by this machine, before any other is known."""
    if config.features.decode != "auto":
        return config
    gpus = torch.cuda.device_count() if config.features.gpus_per_actor else 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS lacks it
    decode = decode_of(cpus=cpus, gpus=gpus)
    return replace(config, features=replace(config.features, decode=decode))


def decode_of(*, cpus: int, gpus: int) -> Literal["cpu", "device"]:
    """Who decodes on a machine with so many CPUs and GPUs."""
    return "device" if gpus and cpus < FEW_CPUS * gpus else "cpu"


def device_kind() -> str:
    """Where this process computes, ``cuda`` or ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def torch_as_before() -> Iterator[None]:
    """Gives this process back the number of threads and the precision that an actor's code sets for its own."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
