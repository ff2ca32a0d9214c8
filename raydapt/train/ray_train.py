"""Runs the training loop on Ray Train workers, or in this process when there are none.

Ray Train is imported where it is used: a training in this process does without.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raydapt.cluster.joining import require_reachable
from raydapt.cluster.nodes import capacity, may_stay, require_nodes, selector
from raydapt.errors import UserError
from raydapt.progress import said_if_slow
from raydapt.settings.groups import RaySettings, TrainSettings
from raydapt.store.folder import Folder
from raydapt.train.checkpoint import Checkpoints, TrainState, from_bytes
from raydapt.train.loop import Log
from raydapt.train.place import WorkerContext

if TYPE_CHECKING:
    import ray.train

_FILE = "state.safetensors"
_LISTEN_EVERY_S = 1.0

TrainFunction = Callable[[WorkerContext, Checkpoints, Log], TrainState]
"""Builds the method and its images where it runs, and calls `raydapt.train.loop.fit`."""


class RayCheckpoints:
    """Checkpoints in Ray Train's storage: found again after a lost worker and by a new driver of the same name."""

    def load(self) -> bytes | None:
        """The latest reported checkpoint of this run."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else _read(checkpoint)

    def save(self, data: bytes | None, metrics: Mapping[str, float]) -> None:
        """Reports a checkpoint; a barrier, so every worker calls it, the first alone with data.

        It is copied to the storage while training goes on; one that cannot be copied ends the training.
        """
        import ray.train

        checkpoint = None
        if data is not None:
            folder = Path(tempfile.mkdtemp(prefix="raydapt-checkpoint-"))
            (folder / _FILE).write_bytes(data)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            dict(metrics),
            checkpoint=checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )


def train_on_workers(
    train: TrainFunction,
    settings: TrainSettings,
    *,
    ray_settings: RaySettings,
    storage: Folder,
    name: str,
    log: Log,
    callbacks: Sequence[Any] = (),
) -> TrainState:
    """Trains on `settings.workers` Ray Train workers; of a range, on as many as there is room for.

    Where workers are lost for good, those that are left go on from the last checkpoint, and where nodes come, more of
    them do. A batch is divided among those there are, so that the steps stay the same.

    Args:
        train: Called on every worker; must be serialisable.
        settings: Workers and what each one gets.
        ray_settings: On which nodes, and how long to wait for them.
        storage: Folder that every node reaches.
        name: The same storage and name resume the same training.
        log: Called in this process with the log lines, as the first worker writes them.
        callbacks: Of Ray Train, such as the one that passes reports on to Ray Tune.

    Raises:
        UserError: When the cluster cannot place the workers, or they cannot reach the storage.
    """
    import ray.train
    import ray.train.torch

    resources = _resources_per_worker(settings, ray_settings)
    least, most = settings.least_workers, settings.most_workers
    require_nodes(ray_settings, ray_settings.model_nodes, resources, count=least, setting="train.workers")
    require_reachable(storage)
    lines = ray.remote(num_cpus=0)(_Lines).remote()
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"train": train, "lines": lines},
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),  # type: ignore[arg-type] # mypy sees the old class
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            label_selector=selector(ray_settings.model_nodes),  # type: ignore[call-arg]
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage.path,
            storage_filesystem=storage.arrow_filesystem(),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
        ),
    )
    with _listening(lines, log, f"starting {_in_words(least, most)} …") as hear:
        checkpoint = trainer.fit().checkpoint
    if checkpoint is None:
        raise RuntimeError("Ray Train ended without a checkpoint.")
    state = from_bytes(_read(checkpoint))
    for line in state.lines:
        hear(line)
    return state


class _Lines:
    """An actor that keeps the log lines of the first worker until this process takes them."""

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Keeps a line."""
        self._lines.append(dict(line))

    def take(self) -> list[dict[str, Any]]:
        """Gives away what was kept."""
        taken, self._lines = self._lines, []
        return taken


@contextmanager
def _listening(lines: Any, log: Log, start: str) -> Iterator[Log]:
    """Passes on the lines of the first worker while training goes on, from a thread of this process.

    Args:
        lines: The actor `_Lines`.
        log: Gets every line once.
        start: What is said to go on until the first line comes.

    Yields:
        What passes on a line that was not heard yet.
    """
    import ray
    from ray.exceptions import RayError

    over, starting = threading.Event(), ExitStack()
    heard: set[tuple[Any, ...]] = set()

    def hear(line: Mapping[str, Any]) -> None:
        starting.close()
        if _place(line) not in heard:  # a checkpoint holds the lines of all sessions, and so of those heard already
            heard.add(_place(line))
            log(line)

    def listen() -> None:
        last = False
        while not last:
            last = over.wait(_LISTEN_EVERY_S)
            try:
                for line in ray.get(lines.take.remote()):
                    hear(line)
            except RayError:  # the cluster is going: training itself will say so
                return

    thread = threading.Thread(target=listen, daemon=True)
    with starting:
        starting.enter_context(said_if_slow(start))
        thread.start()
        try:
            yield hear
        finally:
            over.set()
            thread.join()


def _place(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where in the training a line was written."""
    return line["round"], line["epoch"], line["step"]


def trains_here(settings: TrainSettings, ray_settings: RaySettings) -> bool:
    """Whether a training needs no Ray Train: without workers, or with the one that this process can be."""
    return settings.workers == 0 or (settings.workers == 1 and may_stay(ray_settings))


def check_workers(settings: TrainSettings, ray_settings: RaySettings) -> None:
    """Refuses elastic training on labelled nodes.

    Raises:
        UserError: With the way out.
    """
    if settings.least_workers < settings.most_workers and ray_settings.model_nodes:
        raise UserError(
            f"Settings train.workers={settings.workers} and ray.model_nodes={ray_settings.model_nodes!r}: Ray counts "
            "the room on nodes of any label for elastic training, and would wait for it: give one number of workers, "
            "or no label."
        )


def training_place(settings: TrainSettings, ray_settings: RaySettings) -> str:
    """Where a training happens, in words."""
    if trains_here(settings, ray_settings):
        return "in this process"
    return f"on {_in_words(settings.least_workers, settings.most_workers)}"


def _in_words(least: int, most: int) -> str:
    return f"{most if least == most else f'{least} to {most}'} Ray Train worker{'' if most == 1 else 's'}"


def local_context(settings: TrainSettings) -> WorkerContext:
    """This process alone, on its GPU if there is one and the settings do not forbid it."""
    cuda = torch.cuda.is_available() and settings.gpus_per_worker != 0
    return WorkerContext(device=torch.device("cuda" if cuda else "cpu"))


def _worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    place = WorkerContext(
        device=ray.train.torch.get_device(), rank=context.get_world_rank(), world=context.get_world_size()
    )
    lines = config["lines"]
    log: Log = lines.add.remote if place.rank == 0 else (lambda line: None)
    config["train"](place, RayCheckpoints(), log)


def _read(checkpoint: ray.train.Checkpoint) -> bytes:
    with checkpoint.as_directory() as folder:
        return (Path(folder) / _FILE).read_bytes()


def _resources_per_worker(settings: TrainSettings, ray_settings: RaySettings) -> dict[str, float]:
    """CPUs, and GPUs where there is one for every worker or the settings ask for them."""
    gpus = settings.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if capacity(ray_settings.model_nodes)["GPU"] >= settings.least_workers else 0.0
    return {"CPU": settings.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
