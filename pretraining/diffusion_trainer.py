"""The training state of the miniature diffusion model: the autoencoder first, then the denoiser on its latents.

Nothing here knows of Ray: `pretraining.diffusion_pretraining` drives it, on one worker or several.

Shapes: ``N`` images, ``C`` channels, ``T`` texts, ``L`` tokens, ``D`` width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretraining.clip_batches import PretrainingImages, step_seed
from pretraining.clip_model import IMAGE_PX
from pretraining.clip_trainer import data_folder
from pretraining.diffusion_batches import ImageDrawer, TextTable
from pretraining.diffusion_losses import DenoisingTask, ReconstructionTask
from pretraining.diffusion_model import (
    build_unet,
    build_vae,
    convert_text_encoder,
    encode_texts,
    load_clip,
    load_tokenizer,
    standardise_latents,
)
from pretraining.diffusion_settings import DiffusionPretraining
from pretraining.pretraining_data import save_whole
from pretraining.training_state import rate_factor

BANK_CHUNK = 500
STANDARDISING_IMAGES = 4000


def build_optimizer(module: nn.Module, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; vectors are not decayed."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in learned if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in learned if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)


class DiffusionPretrainer:
    """One worker's training state.

    Attributes:
        vae: The autoencoder, trained during the first ``vae_steps`` steps and frozen from then on.
        unet: The denoiser.
        average: Exponential moving average of the denoiser's weights: what is exported.
        step: Steps done, of both trainings.
        seconds: Wall time spent training, over all resumptions.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    average: dict[str, Tensor]
    step: int
    seconds: float

    def __init__(
        self,
        settings: DiffusionPretraining,
        *,
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda task: task,
    ) -> None:
        self.settings, self.rank, self.world = settings, rank, world
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        images = PretrainingImages.read(data_folder(settings.data), Path(settings.storage) / "cache")
        self.drawer = ImageDrawer(images, shares=settings.shares, source_weights=settings.source_weights)
        tokenizer, encoder = load_tokenizer(), convert_text_encoder()
        self.texts = TextTable(images.vocabulary, lambda texts: encode_texts(texts, tokenizer, encoder))
        self.vae = build_vae(settings.vae_channels, settings.latent_channels)
        self.latent_side = IMAGE_PX // 2 ** (len(settings.vae_channels) - 1)
        self.unet = build_unet(
            settings.unet_channels,
            settings.latent_channels,
            text_width=encoder.config.hidden_size,
            side=self.latent_side,
        )
        reconstruction = ReconstructionTask(
            self.vae, load_clip(), kl_weight=settings.kl_weight, perceptual_weight=settings.perceptual_weight
        )
        denoising = DenoisingTask(self.unet, min_snr=settings.min_snr)
        self._reconstruction, self._denoising = wrap(reconstruction), wrap(denoising)
        self._vae_optimizer = build_optimizer(reconstruction, settings.vae_learning_rate, 0.0)
        self._unet_optimizer = build_optimizer(denoising, settings.learning_rate, settings.weight_decay)
        self.average = {name: tensor.detach().clone() for name, tensor in self.unet.state_dict().items()}
        self.vae_steps = settings.vae_samples // settings.vae_batch_size
        self.unet_steps = settings.samples // settings.batch_size
        self.step, self.seconds = 0, 0.0
        self._bank: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Steps of both trainings."""
        return self.vae_steps + self.unet_steps

    @property
    def trains_vae(self) -> bool:
        """Whether the next step is one of the autoencoder's."""
        return self.step < self.vae_steps

    def train_step(self) -> dict[str, float]:
        """One step of whichever training it is time for."""
        generator = torch.Generator().manual_seed(step_seed(self.settings.seed, self.rank, self.step))
        torch.manual_seed(step_seed(self.settings.seed, self.rank, self.step))
        metrics = self._train_vae(generator) if self.trains_vae else self._train_unet(generator)
        self.step += 1
        if self.step == self.vae_steps:
            self._standardise()
        elif self.step > self.vae_steps:
            self._move_average()
        return metrics

    def _train_vae(self, generator: torch.Generator) -> dict[str, float]:
        count = self.settings.vae_batch_size // self.world
        drawn = self.drawer.draw(count, generator)
        noise_NCHW = torch.randn(
            count, self.settings.latent_channels, self.latent_side, self.latent_side, generator=generator
        )
        return self._learn(
            self._reconstruction,
            self._vae_optimizer,
            self.settings.vae_learning_rate,
            (self.step + 1) / self.vae_steps,
            (drawn.images_NCHW, noise_NCHW),
        )

    def _train_unet(self, generator: torch.Generator) -> dict[str, float]:
        settings = self.settings
        latents_NCHW, concept_N, style_N = self.bank()
        index_N = torch.randint(len(latents_NCHW), (settings.batch_size // self.world,), generator=generator)
        row_N = self.texts.draw_rows(concept_N[index_N], style_N[index_N], generator, dropout=settings.text_dropout)
        clean_NCHW = latents_NCHW[index_N].float()
        noise_NCHW = torch.randn(clean_NCHW.shape, generator=generator)
        time_N = torch.randint(self._denoising_times, (len(clean_NCHW),), generator=generator)
        states_NLD = self.texts.states_TLD[row_N].float()
        return self._learn(
            self._denoising,
            self._unet_optimizer,
            settings.learning_rate,
            (self.step - self.vae_steps + 1) / self.unet_steps,
            (clean_NCHW, noise_NCHW, time_N, states_NLD),
        )

    _denoising_times = 1000

    def _learn(
        self, task: nn.Module, optimizer: torch.optim.Optimizer, rate: float, done: float, inputs: tuple[Tensor, ...]
    ) -> dict[str, float]:
        settings = self.settings
        factor = rate_factor(done, warmup_share=settings.warmup_share, decay_share=settings.decay_share)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        # On the CPU, PyTorch's fused attention is slower in bf16 than plain matrix products on so few positions.
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"), sdpa_kernel(SDPBackend.MATH):
            loss = task(*inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), settings.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": float(loss.detach())}

    @torch.no_grad()
    def _encode(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents of ``count`` fresh images: latents_NCHW (half), concept_N, style_N."""
        parts = []
        for start in range(0, count, BANK_CHUNK):
            drawn = self.drawer.draw(min(BANK_CHUNK, count - start), generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bf16"):
                latents = self.vae.encode(drawn.images_NCHW * 2 - 1).latent_dist.mode()
            parts.append((latents.half(), drawn.concept_N, drawn.style_N))
        latents, concepts, styles = zip(*parts, strict=True)
        return torch.cat(latents), torch.cat(concepts), torch.cat(styles)

    def _standardise(self) -> None:
        generator = torch.Generator().manual_seed(step_seed(self.settings.seed, 0, -1))
        standardise_latents(self.vae, self._encode(STANDARDISING_IMAGES, generator)[0].float())

    def bank(self) -> tuple[Tensor, Tensor, Tensor]:
        """The latents that the denoiser learns from, computed once per autoencoder and kept on disk.

        Returns:
            latents_NCHW in half precision, concept_N, style_N.
        """
        if self._bank is None:
            digest = hashlib.sha256(str((self.settings.seed, self.settings.bank_images, self.settings.shares)).encode())
            for tensor in self.vae.state_dict().values():
                digest.update(tensor.numpy().tobytes())
            folder = Path(self.settings.storage) / self.settings.name / "latents"
            stem = f"{digest.hexdigest()[:16]}-{self.rank}"
            files = [folder / f"{stem}-{what}.npy" for what in ("latents", "concepts", "styles")]
            if not all(file.exists() for file in files):
                generator = torch.Generator().manual_seed(step_seed(self.settings.seed, self.rank, -2))
                count = math.ceil(self.settings.bank_images / self.world)
                for file, tensor in zip(files, self._encode(count, generator), strict=True):
                    save_whole(tensor.numpy(), file)
            latents, concepts, styles = (torch.from_numpy(np.load(file)) for file in files)
            self._bank = (latents, concepts, styles)
        return self._bank

    @torch.no_grad()
    def _move_average(self) -> None:
        # Early on the average follows closely, so that it never remembers the random start.
        done = self.step - self.vae_steps
        decay = min(self.settings.average_decay, done / (done + 10))
        current = self.unet.state_dict()
        torch._foreach_lerp_([self.average[name] for name in current], list(current.values()), 1 - decay)

    def averaged_unet(self) -> UNet2DConditionModel:
        """A denoiser with the averaged weights."""
        unet = UNet2DConditionModel.from_config(self.unet.config)
        unet.load_state_dict(self.average)
        return unet.eval()

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "vae": self.vae.state_dict(),
            "unet": self.unet.state_dict(),
            "average": self.average,
            "optimizers": [self._vae_optimizer.state_dict(), self._unet_optimizer.state_dict()],
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state``."""
        self.vae.load_state_dict(state["vae"])
        self.unet.load_state_dict(state["unet"])
        self.average = dict(state["average"])
        for optimizer, saved in zip((self._vae_optimizer, self._unet_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
