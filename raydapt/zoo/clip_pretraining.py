"""The job that trains the miniature CLIP.

    RAYDAPT_DATA=… python -m raydapt.zoo.clip_pretraining jobs/zoo/clip.yaml [key=value …]

A vision transformer learns, through the text tower, to name photos, aerial views and digits: every step encodes one
sentence per class, and the images of the step are classified among all of them; captioned photos are contrasted with
their captions. Running the same command again resumes from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn

from raydapt.errors import UserError
from raydapt.zoo.clip_model import export_folder
from raydapt.zoo.clip_settings import ClipPretraining, read_settings
from raydapt.zoo.clip_trainer import Pretrainer, data_folder

STATE_FILE = "state.pt"


def log_line(trainer: Pretrainer, metrics: Mapping[str, float], images_per_s: float) -> str:
    """One screen line of numbers with units."""
    left_s = (trainer.steps - trainer.step) * trainer.settings.batch_size / max(images_per_s, 1e-9)
    return (
        f"step {trainer.step}/{trainer.steps} | loss {metrics['loss']:.3f} | named right {metrics['hits']:.1%} | "
        f"{images_per_s:.0f} images/s | {trainer.seconds / 60:.1f} min | ETA {left_s / 60:.0f} min"
    )


def report_checkpoint(trainer: Pretrainer, metrics: Mapping[str, float]) -> None:
    """Hands a checkpoint to Ray Train and refreshes the exported folder (rank 0); every worker must call this."""
    numbers = {**metrics, "step": trainer.step, "seconds": trainer.seconds}
    if trainer.rank != 0:
        ray.train.report(numbers)
        return
    settings = trainer.settings
    export_folder(trainer.average, trainer.tokenizer, export_path(settings))
    with tempfile.TemporaryDirectory() as scratch:
        torch.save(trainer.state(), Path(scratch) / STATE_FILE)
        ray.train.report(numbers, checkpoint=Checkpoint.from_directory(scratch))


def export_path(settings: ClipPretraining) -> Path:
    """Where the open_clip folder is written."""
    return Path(settings.export_to) if settings.export_to else Path(settings.storage) / settings.name / "export"


def data_parallel(task: nn.Module) -> nn.Module:
    """Wraps the task so that workers average their gradients."""
    wrapped: nn.Module = ray.train.torch.prepare_model(task, move_to_device=False)
    return wrapped


def worker_loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: resume, then steps with a log line and a checkpoint now and then."""
    context = ray.train.get_context()
    settings = ClipPretraining(**config)
    rank, world = context.get_world_rank(), context.get_world_size()
    trainer = Pretrainer(settings, rank=rank, world=world, wrap=data_parallel if world > 1 else lambda task: task)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.load(torch.load(Path(folder) / STATE_FILE, weights_only=True))
    metrics: dict[str, float] = {"loss": float("nan"), "hits": float("nan")}
    started = marked = saved = time.perf_counter()
    before_s, sums, count = trainer.seconds, {"loss": 0.0, "hits": 0.0}, 0
    while trainer.step < trainer.steps:
        step_metrics = trainer.train_step()
        sums, count = {key: sums[key] + step_metrics[key] for key in sums}, count + 1
        now = time.perf_counter()
        trainer.seconds = before_s + now - started
        if trainer.step % settings.log_every_steps == 0 and trainer.rank == 0:
            metrics = {key: value / count for key, value in sums.items()}
            line = log_line(trainer, metrics, count * settings.batch_size / (now - marked))
            sys.stderr.write(line + "\n")
            marked, sums, count = now, dict.fromkeys(sums, 0.0), 0
        if save_now(now - saved, settings.checkpoint_every_s, trainer.world):
            saved = now
            report_checkpoint(trainer, metrics)
    report_checkpoint(trainer, metrics)


def save_now(since_s: float, every_s: float, world: int) -> bool:
    """Whether it is time for a checkpoint; workers agree by following rank 0's clock."""
    due = torch.tensor([since_s >= every_s])
    if world > 1:
        torch.distributed.broadcast(due, src=0)
    return bool(due)


def pretrain(settings: ClipPretraining) -> ray.train.Result:
    """Trains (or resumes) the miniature CLIP on Ray Train."""
    data = str(data_folder(settings.data).resolve())
    storage = str(Path(settings.storage).resolve())
    config = {**asdict(settings), "data": data, "storage": storage}
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
    from raydapt.zoo.clip_pretraining import main as main_by_name

    sys.exit(main_by_name(sys.argv[1:]))
