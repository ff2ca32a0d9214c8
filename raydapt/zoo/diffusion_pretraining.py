"""The job that trains the miniature diffusion model.

    RAYDAPT_DATA=… python -m raydapt.zoo.diffusion_pretraining jobs/zoo/diffusion.yaml [key=value …]

An autoencoder learns to shrink photos, aerial views and digits to an 8 x 8 grid, then a denoiser learns to make such
grids from text. Running the same command again resumes from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raydapt.errors import UserError
from raydapt.zoo.clip_pretraining import data_parallel, save_now
from raydapt.zoo.clip_trainer import data_folder
from raydapt.zoo.diffusion_model import export_pipeline
from raydapt.zoo.diffusion_settings import DiffusionPretraining, read_settings
from raydapt.zoo.diffusion_trainer import DiffusionPretrainer

STATE_FILE = "state.pt"


def log_line(trainer: DiffusionPretrainer, loss: float, images_per_s: float) -> str:
    """One screen line of numbers with units."""
    settings = trainer.settings
    if trainer.step <= trainer.vae_steps:
        what, done, steps, batch = "autoencoder", trainer.step, trainer.vae_steps, settings.vae_batch_size
    else:
        what, batch = "denoiser", settings.batch_size
        done, steps = trainer.step - trainer.vae_steps, trainer.unet_steps
    left_s = (steps - done) * batch / max(images_per_s, 1e-9)
    return (
        f"{what} step {done}/{steps} | loss {loss:.4f} | {images_per_s:.0f} images/s | "
        f"{trainer.seconds / 60:.1f} min | ETA {left_s / 60:.0f} min"
    )


def export_path(settings: DiffusionPretraining) -> Path:
    """Where the pipeline's folder is written."""
    return Path(settings.export_to) if settings.export_to else Path(settings.storage) / settings.name / "export"


def report_checkpoint(trainer: DiffusionPretrainer, loss: float) -> None:
    """Hands a checkpoint to Ray Train and refreshes the exported folder (rank 0); every worker must call this."""
    numbers = {"loss": loss, "step": trainer.step, "seconds": trainer.seconds}
    if trainer.rank != 0:
        ray.train.report(numbers)
        return
    export_pipeline(trainer.vae, trainer.averaged_unet(), export_path(trainer.settings))
    with tempfile.TemporaryDirectory() as scratch:
        torch.save(trainer.state(), Path(scratch) / STATE_FILE)
        ray.train.report(numbers, checkpoint=Checkpoint.from_directory(scratch))


def worker_loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: resume, then steps with a log line and a checkpoint now and then."""
    context = ray.train.get_context()
    settings = DiffusionPretraining(**config)
    rank, world = context.get_world_rank(), context.get_world_size()
    wrap = data_parallel if world > 1 else lambda task: task
    trainer = DiffusionPretrainer(settings, rank=rank, world=world, wrap=wrap)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.load(torch.load(Path(folder) / STATE_FILE, weights_only=True))
    loss, losses = float("nan"), list[float]()
    started = marked = saved = time.perf_counter()
    before_s = trainer.seconds
    while trainer.step < trainer.steps:
        batch = settings.vae_batch_size if trainer.trains_vae else settings.batch_size
        losses.append(trainer.train_step()["loss"])
        now = time.perf_counter()
        trainer.seconds = before_s + now - started
        if trainer.step % settings.log_every_steps == 0 or trainer.step == trainer.vae_steps:
            loss = sum(losses) / len(losses)
            if rank == 0:
                sys.stderr.write(log_line(trainer, loss, len(losses) * batch / (now - marked)) + "\n")
            marked, losses = now, []
        if save_now(now - saved, settings.checkpoint_every_s, world) or trainer.step == trainer.vae_steps:
            saved = now
            report_checkpoint(trainer, loss)
    report_checkpoint(trainer, loss)


def pretrain(settings: DiffusionPretraining) -> ray.train.Result:
    """Trains (or resumes) the miniature diffusion model on Ray Train."""
    data = str(data_folder(settings.data).resolve())
    storage = str(Path(settings.storage).resolve())
    config = {**asdict(settings), "data": data, "storage": storage, "export_to": str(export_path(settings).resolve())}
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=settings.workers, resources_per_worker={"CPU": settings.threads}),
        run_config=RunConfig(
            name=settings.name,
            storage_path=storage,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    return trainer.fit()


def main(arguments: Sequence[str]) -> int:
    """Entry point: the YAML file, then ``key=value`` overrides."""
    try:
        settings = read_settings(arguments)
        data_folder(settings.data)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # importing torch on a busy machine
    ray.init(address="local", num_cpus=max(4, settings.workers * settings.threads), include_dashboard=False)
    result = pretrain(settings)
    sys.stdout.write(json.dumps(result.metrics) + "\n")
    return 0


if __name__ == "__main__":
    # By its real name, so that Ray sends workers a reference to this module and not a copy of its classes.
    from raydapt.zoo.diffusion_pretraining import main as main_by_name

    sys.exit(main_by_name(sys.argv[1:]))
