"""How far a run is, asked from another shell: nothing is computed, and nothing of the run is touched."""

import time
from collections.abc import Mapping
from typing import Any

from raydapt.errors import UserError
from raydapt.progress import as_clock
from raydapt.run.finished import open_folder
from raydapt.run.plan import artefact_lines, make_plan
from raydapt.store.run_record import Run

PROGRESS = "progress.json"
_NOTE_EVERY_S = 5.0


class NotedProgress:
    """Writes down how far a training is, at most every few seconds, and passes its log lines on."""

    def __init__(self, record: Run, *, rounds: int, epochs: int) -> None:
        self._record, self._all = record, {"rounds": rounds, "epochs": epochs}
        self._noted: float | None = None
        self._first: tuple[float, int] | None = None

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Takes one line of the log."""
        now = time.monotonic()
        done = (line["round"] - 1) * self._all["epochs"] + line["epoch"]
        self._first = self._first or (now, done)
        if self._noted is None or now - self._noted >= _NOTE_EVERY_S:
            self._noted = now
            kept = {name: line.get(name) for name in ("round", "epoch", "loss", "images_per_s")}
            left_s = self._left_s(now, done)
            self._record.write_json(PROGRESS, {**self._all, **kept, "time": time.time(), "left_s": left_s})

    def _left_s(self, now: float, done: int) -> float | None:
        """Seconds that all rounds take at the pace so far; None at the first line."""
        assert self._first is not None
        since, before = self._first
        total = self._all["rounds"] * self._all["epochs"]
        return (total - done) * (now - since) / (done - before) if done > before else None


def status(run_folder: str) -> str:
    """The state of a run in words.

    Args:
        run_folder: The folder of a run that is finished, running, or was stopped.

    Raises:
        UserError: For a folder that is no run.
    """
    record, config = open_folder(run_folder)
    if record.exists("metrics.json"):
        metrics = record.read_json("metrics.json")
        before, after = metrics["zero_shot"]["top1"], metrics["adapted"]["top1"]
        found = f": zero-shot {before:.2f} %, adapted {after:.2f} % (top-1)" if after is not None else ""
        return f"{record.name}: finished in {metrics['seconds']:.0f} s{found}\nReport: {record.file('report.html')}"
    held = record.folder.held()
    known = {True: "running", False: "stopped; the same command goes on with it", None: "not finished"}
    lines = [f"{record.name}: {known[held]}"]
    try:
        lines += [f"  {line}" for line in artefact_lines(make_plan(config), where=False)]  # that is up to the run
    except UserError as error:  # such as a relative path, asked from another folder
        lines.append(f"  stage     not known from here ({error})")
    if record.exists(PROGRESS):
        lines.append(f"  train     {training_in_words(record.read_json(PROGRESS))}")
    return "\n".join(lines)


def training_in_words(noted: Mapping[str, Any]) -> str:
    """How far a training was when it was noted down (see `NotedProgress`), and how long it has to go at that rate."""
    ago = max(0.0, time.time() - noted["time"])
    rate = f", {noted['images_per_s']:,.0f} images/s" if noted.get("images_per_s") else ""
    left = "" if noted.get("left_s") is None else f", {as_clock(noted['left_s'])} left"
    return (
        f"round {noted['round']} of {noted['rounds']}, epoch {noted['epoch']} of {noted['epochs']}, "
        f"loss {noted['loss']:.4g}{rate}{left}, {ago:.0f} s ago"
    )
