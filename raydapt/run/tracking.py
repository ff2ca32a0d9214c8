"""Tells trackers of a run while it learns and when it is over, on threads: a tracker that is slow or away never blocks.

What goes wrong with a tracker is one warning, and the run goes on without it.
"""

import importlib.util
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from raydapt.errors import UserError
from raydapt.report.run_files import flat_settings
from raydapt.run.trackers import TRACKERS, State, Tracked, Tracker
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree
from raydapt.store.folder import Folder
from raydapt.store.run_record import Run

_LOG = logging.getLogger(__name__)
TRACKED = "tracking.json"
"""File of a run that holds what trackers know it by."""
_PATIENCE_S = 60.0
_FILES = ("config.yaml", "metrics.json", "report.html", "tune.json", "chosen.yaml")
_NOT_TOLD = ("space", "tune.", "describe.", "caption.", "ray.", "runs", "store", "name", "track")
_OF_LINES = ("loss", "learning_rate", "images_per_s")


class Tracking:
    """One run at all its trackers."""

    def __init__(self, names: Sequence[str] = (), run: Tracked | None = None) -> None:
        """Begins at once, elsewhere: nothing is waited for.

        Args:
            names: Of `TRACKERS`; without any, nobody is told.
            run: What is tracked.
        """
        self._tellers = [] if run is None else [_Teller(name, run) for name in names]

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tells numbers of a step."""
        for teller in self._tellers:
            teller.tell(lambda tracker: tracker.log(values, step))

    def finish(
        self, values: Mapping[str, float], files: Mapping[str, bytes], state: State = "finished", *, wait: bool = True
    ) -> None:
        """Tells what the run came to, and waits for the trackers as long as can be asked of anybody.

        Args:
            values: Numbers by name.
            files: Files by name.
            state: Whether it went well.
            wait: Without, `wait` is left to the caller.
        """
        for teller in self._tellers:
            teller.tell(lambda tracker: tracker.finish(values, files, state))
            teller.tell(None)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the trackers have heard everything, or for a minute."""
        tellers, self._tellers = self._tellers, []
        deadline = time.monotonic() + _PATIENCE_S
        for teller in tellers:
            teller.wait(max(0.0, deadline - time.monotonic()))


class _Teller:
    """One tracker on a thread of its own; the thread ends with the process, whatever it is doing."""

    def __init__(self, name: str, run: Tracked) -> None:
        self._name, self._run = name, run
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"track={name}", daemon=True)
        self._thread.start()

    def tell(self, call: Callable[[Tracker], None] | None) -> None:
        """Passes on what to do; None is the end."""
        self._calls.put(call)

    def wait(self, patience_s: float) -> None:
        """Waits until all is done, or warns."""
        self._thread.join(patience_s)
        if self._thread.is_alive():
            _LOG.warning(f"track={self._name} does not answer within {_PATIENCE_S:g} s; the run goes on without it.")

    def _work(self) -> None:
        try:
            tracker: Tracker = TRACKERS[self._name](self._run)
            while (call := self._calls.get()) is not None:
                call(tracker)
        except Exception as error:  # whatever a tracker has, it is no reason to lose a run
            reason = (str(error).splitlines() or [""])[0]
            _LOG.warning(f"track={self._name} failed ({type(error).__name__}: {reason}); the run goes on without it.")


@contextmanager
def tracked(config: Config, record: Run, *, sweep: bool = False) -> Iterator[Tracking]:
    """Tracks a run or a sweep while it is carried out; one that ends by an error is told as failed.

    Args:
        config: Its resolved settings.
        record: Its folder.
        sweep: Whether it is a sweep.
    """
    names = names_of(config)
    tracking = Tracking(names, tracked_run(config, record, sweep=sweep)) if names else Tracking()
    try:
        yield tracking
    except BaseException:
        tracking.finish({}, {}, "failed")
        raise
    metrics = record.read_json("metrics.json") if record.exists("metrics.json") else {}
    tracking.finish(final_values(metrics), {name: record.read_bytes(name) for name in _FILES if record.exists(name)})


def tracked_run(config: Config, record: Run, *, sweep: bool = False) -> Tracked:
    """How trackers know the run of a folder: by an id that stays there, so that a resumed run goes on."""
    if not record.exists(TRACKED):
        record.write_json(TRACKED, {"id": uuid.uuid4().hex})
    return Tracked(
        name=record.name,
        id=record.read_json(TRACKED)["id"],
        runs=Folder(config.runs, setting="runs"),
        settings=settings_told(config),
        sweep=record.name if sweep else None,
    )


def names_of(config: Config) -> list[str]:
    """The trackers of the settings but for TensorBoard, which is a file of the run.

    Raises:
        UserError: For one that is not installed.
    """
    names: list[str] = [name for name in config.track if name in TRACKERS]
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"Setting track=[{name}]: {name} is not installed: pip install 'raydapt[{name}]'.")
    return names


def settings_told(config: Config) -> dict[str, Any]:
    """What trackers hear of the settings: those that may matter to a result, flat."""
    flat = flat_settings(as_tree(config))
    return {key: value for key, value in flat.items() if not key.startswith(_NOT_TOLD)}


def line_values(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log (see `raydapt.train.checkpoint.TrainState.lines`)."""
    values = {f"train/{name}": line.get(name) for name in _OF_LINES}
    values |= {f"scores/{name}": score for name, score in line.get("scores", {}).items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def final_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What a run came to, out of its ``metrics.json``; no accuracies where there are no labels."""
    values = {f"{part}/top1": (metrics.get(part) or {}).get("top1") for part in ("zero_shot", "adapted", "unguarded")}
    values |= {f"scores/{name}": score for name, score in (metrics.get("scores") or {}).items()}
    values |= {name: metrics.get(name) for name in ("label_free_score", "seconds")}
    return {name: float(value) for name, value in values.items() if value is not None}
