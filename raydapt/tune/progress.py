"""How far a sweep is: on the terminal, in the log and for trackers, while its trials run."""

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from raydapt.progress import Progress
from raydapt.run.status import PROGRESS, training_in_words
from raydapt.run.trackers import Tracked
from raydapt.run.tracking import Tracking, names_of, tracked_run
from raydapt.tune.trials import TRIAL, Sweep

_LOG = logging.getLogger(__name__)
_EVERY_S = 30.0


class SweepProgress:
    """Takes what Ray Tune says of trials; trackers see every trial as a child of the sweep."""

    def __init__(
        self,
        sweep: Sweep,
        numbers: Sequence[str],
        settings: Mapping[str, Mapping[str, Any]],
        *,
        total: int,
        show: bool | Literal["auto"] = "auto",
    ) -> None:
        """Starts the clock.

        Args:
            sweep: The sweep.
            numbers: Of the trials, where they are known beforehand: those that are over already do not count for the
                rate.
            settings: Theirs, by number.
            total: How many trials there will be.
            show: As of `raydapt.progress.Progress`.
        """
        done = sum(sweep.record(number).exists(TRIAL) for number in numbers)
        self._sweep, self._settings = sweep, dict(settings)
        self._progress = Progress("tune", total=total, unit="trials", show=show, done=done)
        self._names = names_of(sweep.config)
        self._parent = tracked_run(sweep.config, sweep.run, sweep=True) if self._names else None
        self._children: dict[str, Tracking] = {}
        self._told = time.monotonic()

    def __enter__(self) -> "SweepProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        for child in self._children.values():
            child.wait()

    def running(self, numbers: Sequence[str]) -> None:
        """Logs every now and then what the running trials are at.

        Args:
            numbers: Of those trials.
        """
        if time.monotonic() - self._told < _EVERY_S:
            return
        self._told = time.monotonic()
        for number in numbers:
            record = self._sweep.record(number)
            if record.exists(PROGRESS):
                _LOG.info(f"tune: trial {number}: {training_in_words(record.read_json(PROGRESS))}")

    def scored(self, number: str, drawn: Mapping[str, Any], scores: Mapping[str, float], iteration: int) -> None:
        """Takes the label-free scores that a trial has so far.

        Args:
            number: Of the trial.
            drawn: Its settings, where a search draws them.
            scores: By name.
            iteration: How many times it was scored.
        """
        self._settings.setdefault(number, drawn)
        self._child(number).log({f"scores/{name}": score for name, score in scores.items()}, iteration)

    def over(self, number: str, score: float | None, *, failed: bool = False) -> None:
        """Takes the end of a trial, and its mean label-free score where it has one."""
        self._progress.add(1, failed=int(failed))
        what = "it failed" if failed or score is None else f"{score:.3f} mean label-free score"
        _LOG.info(f"tune: {self._progress.done}/{self._progress.total} trials, trial {number}: {what}")
        record = self._sweep.record(number)
        files = {TRIAL: record.read_bytes(TRIAL)} if record.exists(TRIAL) else {}
        self._child(number).finish({}, files, "failed" if failed else "finished", wait=False)

    def _child(self, number: str) -> Tracking:
        if number not in self._children:
            self._children[number] = Tracking(self._names, self._tracked(number)) if self._parent else Tracking()
        return self._children[number]

    def _tracked(self, number: str) -> Tracked:
        assert self._parent is not None
        return Tracked(
            name=f"{self._parent.name}-{number}",
            id=f"{self._parent.id}{number}",
            runs=self._parent.runs,
            settings=self._settings.get(number, {}),
            sweep=self._parent.name,
            parent=self._parent.id,
        )
