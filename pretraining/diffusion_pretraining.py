"""The job that trains the miniature diffusion model.

    RAYDAPT_DATA=… python -m pretraining.diffusion_pretraining pretraining/jobs/diffusion.yaml [key=value …]

An autoencoder learns to shrink photos, aerial views and digits to an 8 x 8 grid, then a denoiser learns to make such
grids from text. Running the same command again resumes from the last checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray.train

from pretraining import pretraining
from pretraining.diffusion_model import export_pipeline
from pretraining.diffusion_settings import DiffusionPretraining, read_settings
from pretraining.diffusion_trainer import DiffusionPretrainer
from pretraining.pretraining import export_path

__all__ = ["JOB", "export_path", "log_line", "main", "pretrain"]


def log_line(trainer: DiffusionPretrainer, metrics: Mapping[str, float], images_per_s: float) -> str:
    """One screen line of numbers with units."""
    settings = trainer.settings
    if trainer.step <= trainer.vae_steps:
        what, done, steps, batch = "autoencoder", trainer.step, trainer.vae_steps, settings.vae_batch_size
    else:
        what, batch = "denoiser", settings.batch_size
        done, steps = trainer.step - trainer.vae_steps, trainer.unet_steps
    left_s = (steps - done) * batch / max(images_per_s, 1e-9)
    return (
        f"{what} step {done}/{steps} | loss {metrics['loss']:.4f} | {images_per_s:.0f} images/s | "
        f"{trainer.seconds / 60:.1f} min | ETA {left_s / 60:.0f} min"
    )


def export(trainer: DiffusionPretrainer, folder: Path) -> None:
    """Writes the autoencoder and the averaged denoiser as a pipeline."""
    export_pipeline(trainer.vae, trainer.averaged_unet(), folder)


def ends_autoencoder(trainer: DiffusionPretrainer) -> bool:
    """Whether the autoencoder has just had its last step."""
    return trainer.step == trainer.vae_steps


def batch_size(trainer: DiffusionPretrainer) -> int:
    """Images of the step just done."""
    settings = trainer.settings
    return settings.vae_batch_size if trainer.step <= trainer.vae_steps else settings.batch_size


JOB = pretraining.Job(
    settings=DiffusionPretraining,
    read=read_settings,
    build=DiffusionPretrainer,
    export=export,
    log_line=log_line,
    milestone=ends_autoencoder,
    batch_size=batch_size,
)


def pretrain(settings: DiffusionPretraining) -> ray.train.Result:
    """Trains (or resumes) the miniature diffusion model on Ray Train."""
    return pretraining.pretrain(JOB, settings)


def main(arguments: Sequence[str]) -> int:
    """Entry point: the YAML file, then ``key=value`` overrides."""
    return pretraining.main(JOB, arguments)


if __name__ == "__main__":
    # By its real name, so that Ray sends workers a reference to this module and not a copy of its classes.
    from pretraining.diffusion_pretraining import main as main_by_name

    sys.exit(main_by_name(sys.argv[1:]))
