"""The image maker: any text-to-image pipeline of `raydapt.models.pipelines` behind one small interface.

Image i of a class is a function of (seed, class name, i) and the settings alone: every image has a random generator of
its own, and a batch always has the same shape, since the order in which a processor sums depends on it.

Legend: B images of a batch, S image side in px, L tokens, D width of the text states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor

from raydapt.errors import UserError
from raydapt.models.compiling import compiled
from raydapt.models.peak import Clock
from raydapt.models.pipelines import OWN_SAMPLER, STABLE_DIFFUSION, grain_px
from raydapt.models.quantized import quantize_linear_layers
from raydapt.settings.groups import DenoiserPrecision

_PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
SchedulerName = Literal["pipeline", "ddim", "dpm++", "euler", "lcm"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are made of a prompt; all of it decides on the pixels."""

    scheduler: SchedulerName
    """``pipeline`` leaves the one that the pipeline comes with, and so do flow matching and latent consistency."""
    steps: int
    guidance: float
    """Classifier-free guidance; up to 1 there is none, which halves the work."""
    negative_prompt: str
    size_px: int
    seed: int
    batch_size: int
    """Images that are made at once; smaller batches are filled up."""
    precision: DenoiserPrecision = "auto"
    """What the UNet multiplies in; the pipeline is loaded for the same."""


def image_seed(seed: int, class_name: str, index: int) -> int:
    """The 63-bit seed of image `index` of a class; it depends on nothing else."""
    digest = hashlib.blake2b(json.dumps([seed, class_name, index]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class ImageMaker:
    """A loaded pipeline that makes batches of images of one prompt.

    Attributes:
        clock: Of the UNet, or the transformer in its place.
    """

    clock: Clock

    def __init__(self, pipeline: Any, sampling: Sampling, *, compile_denoiser: bool = False) -> None:
        """Sets the scheduler.

        Args:
            pipeline: Changed in place; LoRA weights are in it already.
            sampling: How images are made.
            compile_denoiser: Whether torch compiles the UNet, or the transformer in its place.

        Raises:
            UserError: When the side is none that the pipeline can make, or it knows no negative prompt.
        """
        self._pipeline, self._sampling = pipeline, sampling
        self._kind = type(pipeline).__name__
        grain = grain_px(pipeline)
        if sampling.size_px % grain:
            raise UserError(f"Setting synthesis.size_px={sampling.size_px} must be a multiple of {grain}.")
        if self._kind not in OWN_SAMPLER:
            _set_scheduler(pipeline, sampling.scheduler)
        if (
            self._kind == "PixArtAlphaPipeline"
            and sampling.steps == 1
            and isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)
        ):
            raise UserError(
                "Setting synthesis.steps=1 with a PixArtAlphaPipeline takes another sampler than dpm++: set "
                "synthesis.scheduler=lcm, or more steps."
            )
        self._arguments = self._fixed_arguments()
        self._texts: dict[str, tuple[Tensor, Tensor | None]] = {}
        denoiser, device = getattr(pipeline, "unet", None) or pipeline.transformer, pipeline.device
        if device.type == "cuda" and hasattr(pipeline, "unet"):
            denoiser.to(memory_format=torch.channels_last)  # as a card's matrix units read convolutions
        quantize_linear_layers(denoiser, sampling.precision)
        self.clock = Clock(denoiser, device, _PRECISIONS[denoiser.dtype])
        if compile_denoiser:
            denoiser.forward = compiled(denoiser.forward, setting="synthesis.compile")

    @torch.inference_mode()
    def make(self, prompt: str, class_name: str, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Images `indices` of a class, uint8 [B, S, S, 3]; at most `batch_size` at a time.

        Raises:
            FloatingPointError: When the pipeline computes no numbers (half precision that overflowed, say).
        """
        sampling = self._sampling
        padded = [*indices, *range(indices[-1] + 1, indices[-1] + 1 + sampling.batch_size - len(indices))]
        generators = [torch.Generator().manual_seed(image_seed(sampling.seed, class_name, index)) for index in padded]
        texts = self._texts_for(prompt, len(padded))
        images_B3SS = self._pipeline(generator=generators, **texts, **self._arguments).images[: len(indices)]
        if not bool(images_B3SS.isfinite().all()):
            raise FloatingPointError(f"the pipeline's images of {prompt!r} are not numbers")
        pixel_B3SS = (images_B3SS.float() * 255).round().to(torch.uint8)
        return np.asarray(pixel_B3SS.permute(0, 2, 3, 1).cpu().numpy())

    def _fixed_arguments(self) -> dict[str, Any]:
        """What every call of the pipeline is told; where a pipeline would change size or prompt by itself, not to."""
        sampling, known = self._sampling, signature(self._pipeline.__call__).parameters
        if sampling.negative_prompt and (self._kind == "FluxPipeline" or "negative_prompt" not in known):
            raise UserError(
                f"Setting synthesis.negative_prompt={sampling.negative_prompt!r} means nothing to a {self._kind}: "
                "leave it empty."
            )
        own = {"use_resolution_binning": False, "clean_caption": False}
        return {
            "num_inference_steps": sampling.steps,
            "guidance_scale": sampling.guidance,
            "height": sampling.size_px,
            "width": sampling.size_px,
            "output_type": "pt",
        } | {name: value for name, value in own.items() if name in known}

    def _texts_for(self, prompt: str, images: int) -> dict[str, Any]:
        """What a batch is told of its prompt: Stable Diffusion its states, others the text, which they encode once."""
        if self._kind == STABLE_DIFFUSION:
            wanted_1LD, unwanted_1LD = self._encode(prompt)
            unwanted_BLD = None if unwanted_1LD is None else unwanted_1LD.expand(images, -1, -1)
            return {"prompt_embeds": wanted_1LD.expand(images, -1, -1), "negative_prompt_embeds": unwanted_BLD}
        told: dict[str, Any] = {"prompt": prompt, "num_images_per_prompt": images}
        if self._sampling.guidance > 1 and self._sampling.negative_prompt:
            told["negative_prompt"] = self._sampling.negative_prompt
        return told

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor | None]:
        """The states [1, L, D] of the prompt and, with guidance, of the negative prompt; each text is encoded once."""
        if prompt not in self._texts:
            guided = self._sampling.guidance > 1
            self._texts[prompt] = self._pipeline.encode_prompt(
                prompt, self._pipeline.device, 1, guided, self._sampling.negative_prompt if guided else None
            )
        return self._texts[prompt]


def _set_scheduler(pipeline: Any, name: SchedulerName) -> None:
    """Replaces the pipeline's scheduler by another one with the same noise."""
    config = pipeline.scheduler.config
    if name == "ddim":
        pipeline.scheduler = DDIMScheduler.from_config(config)
    elif name == "dpm++":
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    elif name == "euler":
        pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
    elif name == "lcm":
        pipeline.scheduler = LCMScheduler.from_config(config)
