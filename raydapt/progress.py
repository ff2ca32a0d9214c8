"""One line of progress: rate with units, percent, time left, failed rows."""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, TextIO

_EVERY_S = 0.25


class Progress:
    """Tells how far a long piece of work is.

    On a terminal one line is rewritten in place; elsewhere, and under ``CI``, a single line is written at the end.

    Attributes:
        total: Rows there are in all; None when nobody knows.
        done: Rows so far, those of earlier sessions included.
        failed: Rows of them that are in error.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int | None,
        unit: str = "images",
        show: bool | Literal["auto"] = "auto",
        done: int = 0,
        failed: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        """Starts the clock.

        Args:
            title: What is being done, such as ``features``.
            total: Rows there are in all; None when nobody knows.
            unit: What a row is.
            show: False is silent, True writes the moving line everywhere, ``auto`` on a terminal outside CI.
            done: Rows that an earlier session has done; they do not count for the rate.
            failed: Rows in error among them.
            stream: Where to write; standard error by default.
        """
        self._stream = sys.stderr if stream is None else stream
        self._title, self.total, self._unit = title, total, unit
        self._silent = show is False
        quiet = not self._stream.isatty() or os.environ.get("CI", "") not in ("", "0", "false")
        self._moving = show is True or (show == "auto" and not quiet)
        self._start, self._before = time.monotonic(), done
        self._last = -_EVERY_S
        self.done, self.failed = done, failed

    def add(self, rows: int, failed: int = 0) -> None:
        """Counts rows that have just been done, and those of them in error."""
        self.done += rows
        self.failed += failed
        now = time.monotonic()
        if self._moving and now - self._last >= _EVERY_S:
            self._last = now
            self._stream.write(f"\r\x1b[2K{self.line()}" if self._stream.isatty() else f"{self.line()}\n")
            self._stream.flush()

    def resume(self, done: int) -> None:
        """Sets what was done before; it does not count for the rate."""
        self.done = self._before = done

    def close(self) -> None:
        """Writes the last line."""
        if self._silent:
            return
        erase = "\r\x1b[2K" if self._moving and self._stream.isatty() else ""
        self._stream.write(f"{erase}{self.line()}\n")
        self._stream.flush()

    def line(self) -> str:
        """The line as it stands, such as ``features: 512/2000 images (26 %), 812.4 images/s, 2 s left, 1 failed``."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self._before) / seconds
        of_all = f"/{self.total} {self._unit} ({100 * self.done / max(self.total, 1):.0f} %)" if self.total else ""
        words = [f"{self._title}: {self.done}{of_all or ' ' + self._unit}", f"{rate:.1f} {self._unit}/s"]
        if self.total and self.done >= self.total:
            words.append(f"{_duration(seconds)} in all")
        elif self.total and rate > 0:
            words.append(f"{_duration((self.total - self.done) / rate)} left")
        if self.failed:
            words.append(f"{self.failed} failed")
        return ", ".join(words)


def _duration(seconds: float) -> str:
    """Such as ``42 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class TrainingProgress:
    """The progress of a training, fed with the lines of its log."""

    def __init__(self, *, rounds: int, epochs: int, show: bool | Literal["auto"] = "auto") -> None:
        """Counts epochs; a round that ends early is counted whole."""
        self._progress = Progress("train", total=rounds * epochs, unit="epochs", show=show)
        self._epochs, self._first = epochs, True

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Takes one line of the log (see `raydapt.train.checkpoint.TrainState.lines`)."""
        done = int((line["round"] - 1) * self._epochs + line["epoch"])
        if self._first:  # what an earlier session did has no part in the rate
            self._progress.resume(done - 1)
            self._first = False
        self._progress.add(done - self._progress.done)

    def close(self) -> None:
        """Writes the last line, if anything was done; rounds that ended early count as whole."""
        if not self._first:
            self._progress.add((self._progress.total or 0) - self._progress.done)
            self._progress.close()


def say(sentence: str) -> None:
    """Tells the user something, where progress goes."""
    sys.stderr.write(sentence + "\n")
