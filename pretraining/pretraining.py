"""How every miniature model's training is run: Ray Train, log lines, checkpoints, and the command's entry point.

What differs between the models (settings, training state, export, the wording of a log line) is a `Job`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn

from pretraining.clip_trainer import data_folder
from raydapt.errors import UserError

STATE_FILE = "state.pt"


class Trainer(Protocol):
    """One worker's training state."""

    settings: Any
    rank: int
    step: int
    seconds: float

    @property
    def steps(self) -> int:
        """Steps of the whole training."""

    def train_step(self) -> dict[str, float]:
        """One step; what it measured."""

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load(self, state: dict[str, Any]) -> None:
        """Continues from ``state``."""


def never(trainer: Any) -> bool:
    """No step deserves a checkpoint of its own."""
    return False


def settings_batch(trainer: Any) -> int:
    """Samples of the step just done."""
    return int(trainer.settings.batch_size)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is particular about one model's training.

    Attributes:
        settings: Its settings' class.
        read: Reads them from the command's arguments.
        build: Makes a worker's training state from the settings, with keywords ``rank``, ``world`` and ``wrap``.
        export: Writes the model of a training state into a folder.
        log_line: One screen line from the training state, the mean metrics and the images per second.
        milestone: Whether the step just done deserves a log line and a checkpoint whatever the clock says.
        batch_size: Samples of the step just done.
    """

    settings: type[Any]
    read: Callable[[Sequence[str]], Any]
    build: Callable[..., Any]
    export: Callable[[Any, Path], None]
    log_line: Callable[[Any, dict[str, float], float], str]
    milestone: Callable[[Any], bool] = never
    batch_size: Callable[[Any], int] = settings_batch


def export_path(settings: Any) -> Path:
    """Where the model's folder is written."""
    return Path(settings.export_to) if settings.export_to else Path(settings.storage) / settings.name / "export"


def report_checkpoint(job: Job, trainer: Trainer, metrics: dict[str, float]) -> None:
    """Hands a checkpoint to Ray Train and refreshes the exported folder (rank 0); every worker must call this."""
    numbers = {**metrics, "step": trainer.step, "seconds": trainer.seconds}
    if trainer.rank != 0:
        ray.train.report(numbers)
        return
    job.export(trainer, export_path(trainer.settings))
    with tempfile.TemporaryDirectory() as scratch:
        torch.save(trainer.state(), Path(scratch) / STATE_FILE)
        ray.train.report(numbers, checkpoint=Checkpoint.from_directory(scratch))


def data_parallel(task: nn.Module) -> nn.Module:
    """Wraps the task so that workers average their gradients."""
    wrapped: nn.Module = ray.train.torch.prepare_model(task, move_to_device=False)
    return wrapped


def save_now(since_s: float, every_s: float, world: int) -> bool:
    """Whether it is time for a checkpoint; workers agree by following rank 0's clock."""
    due = torch.tensor([since_s >= every_s])
    if world > 1:
        torch.distributed.broadcast(due, src=0)
    return bool(due)


def worker_loop(job: Job, config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: resume, then steps with a log line and a checkpoint now and then."""
    context = ray.train.get_context()
    settings = job.settings(**config)
    rank, world = context.get_world_rank(), context.get_world_size()
    wrap = data_parallel if world > 1 else lambda task: task
    trainer: Trainer = job.build(settings, rank=rank, world=world, wrap=wrap)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.load(torch.load(Path(folder) / STATE_FILE, weights_only=True))
    metrics: dict[str, float] = {"loss": float("nan")}
    measured: list[dict[str, float]] = []
    started = marked = saved = time.perf_counter()
    before_s = trainer.seconds
    while trainer.step < trainer.steps:
        measured.append(trainer.train_step())
        now = time.perf_counter()
        trainer.seconds = before_s + now - started
        milestone = job.milestone(trainer)
        if trainer.step % settings.log_every_steps == 0 or milestone:
            metrics = {key: sum(one[key] for one in measured) / len(measured) for key in measured[0]}
            if rank == 0:
                speed = len(measured) * job.batch_size(trainer) / (now - marked)
                sys.stderr.write(job.log_line(trainer, metrics, speed) + "\n")
            marked, measured = now, []
        if save_now(now - saved, settings.checkpoint_every_s, world) or milestone:
            saved = now
            report_checkpoint(job, trainer, metrics)
    report_checkpoint(job, trainer, metrics)


def pretrain(job: Job, settings: Any) -> ray.train.Result:
    """Trains (or resumes) a miniature model on Ray Train."""
    data = str(data_folder(settings.data).resolve())
    storage = str(Path(settings.storage).resolve())
    config = {**asdict(settings), "data": data, "storage": storage, "export_to": str(export_path(settings).resolve())}

    def loop(config: dict[str, Any]) -> None:
        worker_loop(job, config)

    trainer = TorchTrainer(
        loop,
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


def main(job: Job, arguments: Sequence[str]) -> int:
    """Entry point: the YAML file, then ``key=value`` overrides."""
    try:
        settings = job.read(arguments)
        data_folder(settings.data)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # importing torch on a busy machine
    ray.init(address="local", num_cpus=max(4, settings.workers * settings.threads), include_dashboard=False)
    result = pretrain(job, settings)
    sys.stdout.write(json.dumps(result.metrics) + "\n")
    return 0
