"""Runs the training loop on Ray Train workers, or in this process when there are none."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from raydapt.config import TrainSettings
from raydapt.errors import UserError
from raydapt.train.checkpoint import Checkpoints, TrainState, from_bytes
from raydapt.train.loop import Log, Place

_FILE = "state.safetensors"

TrainFunction = Callable[[Place, Checkpoints, Log], TrainState]
"""Builds the method and its images where it runs, and calls `raydapt.train.loop.fit`."""


class RayCheckpoints:
    """Checkpoints in Ray Train's storage: found again after a lost worker and by a new driver of the same name."""

    def load(self) -> bytes | None:
        """The latest reported checkpoint of this run."""
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else _read(checkpoint)

    def save(self, data: bytes | None, metrics: Mapping[str, float]) -> None:
        """Reports a checkpoint; a barrier, so every worker calls it, the first alone with data."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if data is not None:
                (Path(folder) / _FILE).write_bytes(data)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(dict(metrics), checkpoint=checkpoint)


def train_on_workers(train: TrainFunction, settings: TrainSettings, *, storage: str, name: str, log: Log) -> TrainState:
    """Trains on `settings.workers` Ray Train workers.

    Args:
        train: Called on every worker; must be serialisable.
        settings: Workers and what each one gets.
        storage: Folder or URI that every node reaches.
        name: The same storage and name resume the same training.
        log: Called in this process with the log lines once training is over.

    Raises:
        UserError: When the cluster cannot place the workers.
    """
    use_gpu = _use_gpu(settings)
    _check_resources(settings, use_gpu=use_gpu)
    resources = {"CPU": settings.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = 1.0 if settings.gpus_per_worker == "auto" else settings.gpus_per_worker
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"train": train},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    checkpoint = trainer.fit().checkpoint
    if checkpoint is None:
        raise RuntimeError("Ray Train ended without a checkpoint.")
    state = from_bytes(_read(checkpoint))
    for line in state.lines:
        log(line)
    return state


def local_place(settings: TrainSettings) -> Place:
    """This process alone, on its GPU if there is one and the settings do not forbid it."""
    cuda = torch.cuda.is_available() and settings.gpus_per_worker != 0
    return Place(device=torch.device("cuda" if cuda else "cpu"))


def _worker(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    place = Place(device=ray.train.torch.get_device(), rank=context.get_world_rank(), world=context.get_world_size())
    config["train"](place, RayCheckpoints(), lambda line: None)


def _read(checkpoint: ray.train.Checkpoint) -> bytes:
    with checkpoint.as_directory() as folder:
        return (Path(folder) / _FILE).read_bytes()


def _use_gpu(settings: TrainSettings) -> bool:
    if settings.gpus_per_worker == "auto":
        return _cluster_has("GPU") >= settings.workers
    return settings.gpus_per_worker > 0


def _check_resources(settings: TrainSettings, *, use_gpu: bool) -> None:
    """Refuses a request that no node of the cluster could ever serve, instead of waiting for ever."""
    cpus = _cluster_has("CPU")
    wanted = settings.workers * settings.cpus_per_worker
    if wanted > cpus and not use_gpu:
        raise UserError(
            f"Settings train.workers={settings.workers} and train.cpus_per_worker={settings.cpus_per_worker} want "
            f"{wanted:g} CPUs but the cluster has {cpus:g}: lower them, or raise ray.cpus on a local cluster."
        )


def _cluster_has(resource: str) -> float:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get(resource, 0.0)
