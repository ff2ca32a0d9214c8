"""The image maker: any Stable Diffusion pipeline of diffusers behind one small interface.

Image i of a class is a function of (seed, class name, i) and the settings alone: every image has a random generator of
its own, and a batch always has the same shape, since the order in which a processor sums depends on it.

Legend: B images of a batch, S image side in px, L tokens, D width of the text states.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from raydapt.errors import UserError
from raydapt.store.fingerprint import files_digest

MINI = Path(__file__).parent / "mini" / "diffusion"
INDEX_FILE = "model_index.json"
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SETTING = "synthesis.pipeline"
SchedulerName = Literal["pipeline", "ddim", "dpm++", "euler", "lcm"]
_UNUSED_FILES = (".md", ".png", ".jpg", ".gitattributes")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are made of a prompt; all of it decides on the pixels."""

    scheduler: SchedulerName
    """``pipeline`` leaves the one that the pipeline comes with."""
    steps: int
    guidance: float
    """Classifier-free guidance; up to 1 there is none, which halves the work."""
    negative_prompt: str
    size_px: int
    seed: int
    batch_size: int
    """Images that are made at once; smaller batches are filled up."""


def load_pipeline(name: str, *, device: str | torch.device = "cpu") -> StableDiffusionPipeline:
    """Loads a Stable Diffusion pipeline, without its safety checker, in half precision on a GPU.

    Args:
        name: `mini`; a folder in diffusers' layout, such as Stable Diffusion 1.5's; or a name of the model hub.
        device: Where to put it.

    Raises:
        UserError: When there is no such pipeline, a part of it is missing, or it cannot be fetched.
    """
    folder = _folder(name)
    half = torch.device(device).type == "cuda"
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(folder or name),
            dtype=torch.float16 if half else torch.float32,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise _not_loaded(name, error) from error
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    return pipeline.to(device)


def pipeline_identity(name: str) -> str:
    """What the images of a pipeline depend on, without loading it.

    Returns:
        For a folder, a digest of its weights, configurations and tokenizer, wherever it lies; for a name of the hub,
        the name and diffusers' version.
    """
    folder = _folder(name)
    if folder is None:
        return f"{name}@diffusers-{diffusers.__version__}"
    used = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in _UNUSED_FILES)
    return files_digest(used, folder)


def weight_bytes(name: str, component: str) -> int:
    """Size of the weights of one component, without loading it; 0 where the pipeline is no folder."""
    folder = _folder(name)
    return sum(path.stat().st_size for path in (folder / component).glob("*.safetensors")) if folder else 0


def native_size_px(name: str) -> int:
    """Side of the images that a pipeline was trained for, from its configuration alone.

    Raises:
        UserError: When the configuration cannot be read.
    """
    where = str(_folder(name) or name)
    try:
        side: int = UNet2DConditionModel.load_config(where, subfolder="unet")["sample_size"]
        depth: int = len(AutoencoderKL.load_config(where, subfolder="vae")["block_out_channels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_loaded(name, error) from error
    size_px: int = side * 2 ** (depth - 1)
    return size_px


def image_seed(seed: int, class_name: str, index: int) -> int:
    """The 63-bit seed of image `index` of a class; it depends on nothing else."""
    digest = hashlib.blake2b(json.dumps([seed, class_name, index]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class ImageMaker:
    """A loaded pipeline that makes batches of images of one prompt.

    Attributes:
        unet_seconds: Time spent inside the UNet so far.
    """

    unet_seconds: float

    def __init__(self, pipeline: StableDiffusionPipeline, sampling: Sampling) -> None:
        """Sets the scheduler.

        Raises:
            UserError: When the side is none that the pipeline can make.
        """
        self._pipeline, self._sampling = pipeline, sampling
        grain = max(8, pipeline.vae_scale_factor)
        if sampling.size_px % grain:
            raise UserError(f"Setting synthesis.size_px={sampling.size_px} must be a multiple of {grain}.")
        _set_scheduler(pipeline, sampling.scheduler)
        self._texts: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.unet_seconds = self._entered = 0.0
        pipeline.unet.register_forward_pre_hook(self._enter)
        pipeline.unet.register_forward_hook(self._leave)

    @torch.inference_mode()
    def make(self, prompt: str, class_name: str, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Images `indices` of a class, uint8 [B, S, S, 3]; at most `batch_size` at a time.

        Raises:
            FloatingPointError: When the pipeline computes no numbers (half precision that overflowed, say).
        """
        sampling = self._sampling
        padded = [*indices, *range(indices[-1] + 1, indices[-1] + 1 + sampling.batch_size - len(indices))]
        generators = [torch.Generator().manual_seed(image_seed(sampling.seed, class_name, index)) for index in padded]
        wanted_1LD, unwanted_1LD = self._encode(prompt)
        images_B3SS = self._pipeline(
            prompt_embeds=wanted_1LD.expand(len(padded), -1, -1),
            negative_prompt_embeds=None if unwanted_1LD is None else unwanted_1LD.expand(len(padded), -1, -1),
            generator=generators,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            height=sampling.size_px,
            width=sampling.size_px,
            output_type="pt",
        ).images[: len(indices)]
        if not bool(images_B3SS.isfinite().all()):
            raise FloatingPointError(f"the pipeline's images of {prompt!r} are not numbers")
        pixel_B3SS = (images_B3SS.float() * 255).round().to(torch.uint8)
        return np.asarray(pixel_B3SS.permute(0, 2, 3, 1).cpu().numpy())

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor | None]:
        """The states [1, L, D] of the prompt and, with guidance, of the negative prompt; each text is encoded once."""
        if prompt not in self._texts:
            guided = self._sampling.guidance > 1
            self._texts[prompt] = self._pipeline.encode_prompt(
                prompt, self._pipeline.device, 1, guided, self._sampling.negative_prompt if guided else None
            )
        return self._texts[prompt]

    def _enter(self, *_: Any) -> None:
        self._wait()
        self._entered = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        self._wait()
        self.unet_seconds += time.perf_counter() - self._entered

    def _wait(self) -> None:
        if self._pipeline.device.type == "cuda":
            torch.cuda.synchronize()


def _set_scheduler(pipeline: StableDiffusionPipeline, name: SchedulerName) -> None:
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


def _folder(name: str) -> Path | None:
    """The folder that a name stands for, with all its parts; None when it stands for a name of the hub."""
    folder = MINI if name == "mini" else Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith(("/", "./", "../", "~")):
            raise UserError(f"Setting {SETTING}={name!r}: there is no such folder; give a pipeline's folder.")
        return None
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"Setting {SETTING}={name!r}: the folder has no {INDEX_FILE}; give a folder in diffusers' layout."
        )
    kind = json.loads((folder / INDEX_FILE).read_text()).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(f"Setting {SETTING}={name!r} holds a {kind}: give the folder of a StableDiffusionPipeline.")
    missing = [part for part in COMPONENTS if not any(folder.glob(f"{part}/*"))]
    if missing:
        raise UserError(
            f"Setting {SETTING}={name!r}: the folder lacks {', '.join(f'{part}/' for part in missing)}; give a whole "
            "Stable Diffusion folder."
        )
    return folder.resolve()


def _not_loaded(name: str, error: Exception) -> UserError:
    return UserError(
        f"Setting {SETTING}={name!r} cannot be loaded ({_first_line(error)}): give 'mini', a folder in diffusers' "
        "Stable Diffusion layout, or a name of the model hub that can be reached."
    )


def _first_line(error: Exception) -> str:
    """The first line of a library's fault, bounded."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
