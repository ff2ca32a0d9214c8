"""Settings of the miniature diffusion model's pre-training: a frozen dataclass, a YAML file and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raydapt.errors import UserError
from raydapt.settings.tree import apply_override, read_yaml, settings_from_tree


@dataclass(frozen=True, kw_only=True)
class DiffusionPretraining:
    """Everything that decides the weights, and where they go.

    Two trainings follow each other: the autoencoder, then, on its frozen latents, the denoiser. The text encoder is
    the miniature CLIP's and is not trained.
    """

    data: str | None = None
    """Folder that holds ``pretrain/``; None takes the environment's RAYDAPT_DATA."""
    storage: str = "runs/zoo"
    """Checkpoints, the decoded images and the latents go here."""
    name: str = "diffusion"
    """Name of the run; the same storage and name resume it."""
    export_to: str | None = None
    """Folder that receives the pipeline at every checkpoint; None: ``{storage}/{name}/export``."""
    seed: int = 0
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"photos": 0.38, "cartoons": 0.17, "aerial": 0.18, "satellite": 0.12, "digits": 0.15}
    )
    """Share of each style among the images."""
    source_weights: Mapping[str, float] = field(
        default_factory=lambda: {"tiny-imagenet": 0.55, "cifar100": 0.1, "caltech101": 0.17, "pacs-photo": 0.18}
    )
    """Share of each collection among the photos."""
    vae_channels: tuple[int, ...] = (16, 32, 64)
    """Widths at 32, 16 and 8 px."""
    latent_channels: int = 4
    vae_samples: int = 40_000
    """Images seen by the autoencoder in all."""
    vae_batch_size: int = 32
    vae_learning_rate: float = 3e-3
    kl_weight: float = 1e-5
    """Of the latents' divergence from a unit Gaussian, nats per number."""
    perceptual_weight: float = 0.1
    """Of the distance between the miniature CLIP's features of an image and of its reconstruction."""
    bank_images: int = 120_000
    """Augmented images whose latents are computed once, to be learned from several times."""
    unet_channels: tuple[int, ...] = (64, 128)
    """Widths at 8 and 4 px of the latent grid."""
    samples: int = 320_000
    """Latents seen by the denoiser in all."""
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.02
    decay_share: float = 0.5
    """The learning rate is level, then falls linearly to zero over this last share, in both trainings."""
    min_snr: float = 5.0
    """Signal-to-noise ratio above which easy steps no longer weigh more (min-SNR-γ weighting)."""
    text_dropout: float = 0.1
    """Share of samples that see the empty text, for classifier-free guidance."""
    clip_grad_norm: float = 1.0
    average_decay: float = 0.998
    """Of the exponential moving average of the denoiser's weights, per step."""
    workers: int = 1
    """Ray Train workers; more than one train data-parallel."""
    threads: int = 1
    """CPU threads per worker."""
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpoint_every_s: float = 240.0
    log_every_steps: int = 20


def read_settings(arguments: Sequence[str]) -> DiffusionPretraining:
    """Reads ``FILE.yaml key=value …``.

    Raises:
        UserError: No file, a broken one, an unknown key or a value of the wrong kind.
    """
    if not arguments:
        raise UserError("No job file was given: say pretraining/jobs/diffusion.yaml, then any key=value.")
    tree = read_yaml(arguments[0])
    for item in arguments[1:]:
        apply_override(tree, item)
    return settings_from_tree(DiffusionPretraining, tree)
