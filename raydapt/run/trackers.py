"""MLflow and Weights & Biases as places that hear of a run; TensorBoard's events are a matter of `tensorboard`.

Addresses, tokens and modes are theirs and come from the environment alone: ``MLFLOW_TRACKING_URI``, ``WANDB_API_KEY``,
``WANDB_MODE`` and the like. Without any, both write below the folder of the runs, on this machine.
"""

import importlib
import os
import re
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from raydapt.store.folder import Folder

State = Literal["finished", "failed"]
_PROJECT = "raydapt"
_LONGEST_VALUE = 500
_PARENT_S = 20.0
_EXPERIMENTS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A run, a sweep, or a trial of one, as a tracker is told of it."""

    name: str
    """As people call it."""
    id: str
    """Of this run for ever: letters and digits. Who tracks it again goes on with what is there."""
    runs: Folder
    """Where runs lie."""
    settings: Mapping[str, Any]
    """Flat, such as ``train.epochs``."""
    sweep: str | None = None
    """Name of the sweep, of a sweep itself and of its trials."""
    parent: str | None = None
    """`id` of the sweep, of a trial."""


class Tracker(Protocol):
    """One tracked run at one place. Every call may take its time: `raydapt.run.tracking` makes them on a thread."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes numbers of a step."""

    def finish(self, values: Mapping[str, float], files: Mapping[str, bytes], state: State) -> None:
        """Takes what the run came to, and its files."""


class MlflowTracker:
    """A run of MLflow, in the experiment ``raydapt`` unless ``MLFLOW_EXPERIMENT_NAME`` names another one."""

    def __init__(self, run: Tracked) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow asks for since version 3
        mlflow: Any = importlib.import_module("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (_local(run.runs) / "mlruns").as_uri()
        self._client = mlflow.MlflowClient(uri)
        self._metric: Any = importlib.import_module("mlflow.entities").Metric
        experiment = _experiment(self._client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT)
        found = self._find(experiment, run.id)
        if found is None:
            tags = {"raydapt.id": run.id} | ({"raydapt.sweep": run.sweep} if run.sweep else {})
            parent = self._find_parent(experiment, run.parent) if run.parent else None
            tags |= {"mlflow.parentRunId": parent} if parent else {}
            found = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
            for name, value in run.settings.items():
                self._client.log_param(found, name, told(value))
        self._run: str = found

    def _find(self, experiment: str, own_id: str) -> str | None:
        held = self._client.search_runs([experiment], filter_string=f"tags.`raydapt.id` = '{own_id}'", max_results=1)
        return held[0].info.run_id if held else None

    def _find_parent(self, experiment: str, own_id: str) -> str | None:
        """The run of the sweep, which another thread makes at the same time."""
        deadline = time.monotonic() + _PARENT_S
        while (found := self._find(experiment, own_id)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes numbers of a step."""
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, values: Mapping[str, float], files: Mapping[str, bytes], state: State) -> None:
        """Takes what the run came to, and its files."""
        self.log(values, 0)
        for name, data in files.items():
            with _file(name, data) as path:
                self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, status=state.upper())


class WandbTracker:
    """A run of Weights & Biases; offline where neither a key nor ``WANDB_MODE`` is there, since nobody is asked."""

    def __init__(self, run: Tracked) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._wandb = wandb
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            id=run.id,
            name=run.name,
            group=run.sweep,
            job_type=None if run.sweep is None else "trial" if run.parent else "sweep",
            config={name: told(value) for name, value in run.settings.items()},
            dir=os.environ.get("WANDB_DIR") or str(_local(run.runs)),
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")  # a resumed run tells some steps again

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes numbers of a step."""
        self._run.log({**values, "step": step})

    def finish(self, values: Mapping[str, float], files: Mapping[str, bytes], state: State) -> None:
        """Takes what the run came to, and its files."""
        self._run.summary.update(dict(values))
        if files:
            artifact = self._wandb.Artifact(f"run-{self._run.id}", type="run")
            for name, data in files.items():
                with artifact.new_file(name, mode="wb") as sink:
                    sink.write(data)
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if state == "finished" else 1)


TRACKERS: Mapping[str, type[MlflowTracker] | type[WandbTracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}
"""By the names of the setting ``track``."""


def told(value: Any) -> str:
    """A setting as a tracker shows it: short, and without the password that an address may hold."""
    return re.sub(r"://[^/@\s]+@", "://", str(value))[:_LONGEST_VALUE]


def _experiment(client: Any, name: str) -> str:
    with _EXPERIMENTS[client.tracking_uri]:  # a sweep and its first trials begin at the same time
        held = client.get_experiment_by_name(name)
        found: str = held.experiment_id if held else client.create_experiment(name)
    return found


def _local(runs: Folder) -> Path:
    """A folder of this machine, made: that of the runs, or the current one where they lie elsewhere."""
    folder = Path(runs.path) if runs.local else Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


@contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        yield path
