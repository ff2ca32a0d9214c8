"""What the two trainings of the miniature diffusion model minimise.

Shapes: ``N`` images, ``C`` channels, ``L`` tokens, ``D`` width.
"""

from __future__ import annotations

import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from pretraining.clip_model import MEAN, STD
from pretraining.diffusion_model import NOISE_SCHEDULE


class ReconstructionTask(nn.Module):
    """Absolute error, distance in the miniature CLIP's features, and a little divergence from a unit Gaussian."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, vae: AutoencoderKL, clip: open_clip.CLIP, *, kl_weight: float, perceptual_weight: float) -> None:
        super().__init__()
        self.vae = vae
        self._clip = (clip,)  # a tuple hides it from parameters() and from data parallelism
        self._kl_weight, self._perceptual_weight = kl_weight, perceptual_weight
        self.register_buffer("mean_C11", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def _features(self, images_NCHW: Tensor) -> Tensor:
        """Unit features of images in [0, 1]."""
        normalised = (images_NCHW - self.mean_C11) / self.std_C11
        return F.normalize(self._clip[0].visual(normalised).float(), dim=1)

    def forward(self, images_NCHW: Tensor, noise_NCHW: Tensor) -> Tensor:
        """The loss of images in [0, 1]; the noise draws the latents from the posterior."""
        posterior = self.vae.encode(images_NCHW * 2 - 1).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + noise_NCHW * (log_variance / 2).exp()
        rebuilt = self.vae.decode(latents).sample.float() / 2 + 0.5
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        with torch.no_grad():
            wanted = self._features(images_NCHW)
        perceived = 1 - (self._features(rebuilt) * wanted).sum(1).mean()
        error = (rebuilt - images_NCHW).abs().mean()
        loss: Tensor = error + self._perceptual_weight * perceived + self._kl_weight * divergence
        return loss


class DenoisingTask(nn.Module):
    """Squared error of the predicted velocity, weighted by the signal-to-noise ratio.

    v = √ᾱ ε - √(1-ᾱ) x (Salimans and Ho, 2022, "Progressive Distillation", eq. 11); weight min(SNR, γ) / (SNR + 1)
    (Hang et al., 2023, "Efficient Diffusion Training via Min-SNR Weighting", section 3.4).
    """

    snr_T: Tensor

    def __init__(self, unet: UNet2DConditionModel, *, min_snr: float) -> None:
        super().__init__()
        self.unet = unet
        self._min_snr = min_snr
        self._schedule = DDPMScheduler(**NOISE_SCHEDULE)
        kept_T = self._schedule.alphas_cumprod
        self.register_buffer("snr_T", kept_T / (1 - kept_T), persistent=False)

    def forward(self, clean_NCHW: Tensor, noise_NCHW: Tensor, time_N: Tensor, states_NLD: Tensor) -> Tensor:
        """The loss of clean latents under the given noise, times and texts."""
        noisy = self._schedule.add_noise(clean_NCHW, noise_NCHW, time_N)
        velocity = self._schedule.get_velocity(clean_NCHW, noise_NCHW, time_N)
        predicted = self.unet(noisy, time_N, encoder_hidden_states=states_NLD).sample.float()
        snr_N = self.snr_T[time_N]
        weight_N = snr_N.clamp(max=self._min_snr) / (snr_N + 1)
        loss: Tensor = ((predicted - velocity).square().mean((1, 2, 3)) * weight_N).mean()
        return loss
