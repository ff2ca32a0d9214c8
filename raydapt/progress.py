"""Progress of long pieces of work by tqdm, in terminals and notebooks, and messages by logging.

A terminal or notebook sees one moving line. Elsewhere, and under ``CI``, a line is logged every half a minute and at
the end. Messages and these lines go to the logger ``raydapt`` at level INFO; `log_to_console` shows them, as the
command line does.
"""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets sees the line of a terminal
    from tqdm.auto import tqdm

_LOG = logging.getLogger("raydapt")
_EVERY_S = 0.25
_LOG_EVERY_S = 30.0
_SILENCE_S = 2.0
_BAR = "{desc}: {percentage:3.0f} %|{bar}| {n:,}/{total:,} {unit}{postfix}"
_WITHOUT_TOTAL = "{desc}: {n:,} {unit}{postfix}"
_CLOCKS = ((1, "s"), (60, "min"), (3600, "h"))
_LEAST_RATE = 0.1
_COLUMNS, _LINES = 79, 24
"""Of a terminal that does not know its size."""


class Progress:
    """Tells how far a long piece of work is: rate, time left, failed rows.

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
        file: TextIO | None = None,
    ) -> None:
        """Starts the clock.

        Args:
            title: What is being done, such as ``features``.
            total: Rows there are in all; None when nobody knows.
            unit: What a row is.
            show: False is silent, True draws the moving line everywhere, ``auto`` on a terminal or in a notebook,
                outside CI.
            done: Rows that an earlier session has done; they do not count for the rate.
            failed: Rows in error among them.
            file: Where a terminal's line goes; standard error by default.
        """
        file = sys.stderr if file is None else file
        moving = show is True or (show == "auto" and _watched(file))
        self._title, self._unit, self._logs = title, unit, show is not False and not moving
        self.total, self.done, self.failed = total, done, failed
        self._start, self._before = time.monotonic(), done
        self._logged = self._working = self._start
        self._bar = tqdm(
            desc=title,
            total=total or None,
            unit=unit,
            initial=done,
            file=file,
            disable=not moving,
            **_size(file),
            mininterval=_EVERY_S,
            bar_format=_BAR if total else _WITHOUT_TOTAL,
        )

    def begun(self, ago_s: float) -> None:
        """Lets rate and time left count from so long ago: what came before, such as Ray's actors, was the start."""
        self._working = max(self._start, time.monotonic() - ago_s)

    def add(self, rows: int, failed: int = 0, *, rate: tuple[float, str] | None = None) -> None:
        """Counts rows that have just been done.

        Args:
            rows: How many.
            failed: Those of them that are in error.
            rate: A number and its unit, per second, to show in place of rows per second.
        """
        self.done += rows
        self.failed += failed
        self._bar.set_postfix_str(self._told(rate), refresh=False)
        self._bar.update(rows)
        ended = self.total is not None and self.done >= self.total  # `close` tells that
        if self._logs and not ended and time.monotonic() - self._logged >= _LOG_EVERY_S:
            self._logged = time.monotonic()
            _LOG.info(self.line(rate))

    def close(self, *, rate: tuple[float, str] | None = None) -> None:
        """Leaves the last line; see `add` for the rate."""
        self._bar.set_postfix_str(self._told(rate), refresh=False)
        self._bar.close()
        if self._logs:
            _LOG.info(self.line(rate))

    def line(self, rate: tuple[float, str] | None = None) -> str:
        """The line without a bar: ``features: 512/2,000 images (26 %), 812 images/s, 00:02 left, 1 failed``."""
        of_all = f"/{self.total:,} {self._unit} ({100 * self.done / self.total:.0f} %)" if self.total else ""
        return ", ".join(filter(None, [f"{self._title}: {self.done:,}{of_all or ' ' + self._unit}", self._told(rate)]))

    def _told(self, rate: tuple[float, str] | None) -> str:
        """Rate, time left or taken, failed rows: as far as there is anything to tell."""
        ended = self.total is not None and self.done >= self.total
        seconds = time.monotonic() - (self._start if ended else self._working)
        fresh = self.done - self._before
        speed, unit = rate or (fresh / seconds if seconds > 0 else 0.0, self._unit)
        words = [_rate(speed, unit)] if speed > 0 else []
        if self.total and ended:
            words.append(f"{as_clock(seconds)} in all")
        elif self.total and fresh > 0:
            words.append(f"{as_clock((self.total - self.done) * seconds / fresh)} left")
        return ", ".join(words + ([f"{self.failed} failed"] if self.failed else []))


class TrainingProgress:
    """The progress of a training, fed with the lines of its log."""

    def __init__(self, *, rounds: int, epochs: int, show: bool | Literal["auto"] = "auto") -> None:
        """Counts epochs; a round that ends early is counted whole. The rate is that of images."""
        self._total, self._epochs, self._show = rounds * epochs, epochs, show
        self._progress: Progress | None = None
        self._images_per_s: list[float] = []

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Takes one line of the log (see `raydapt.train.checkpoint.TrainState.lines`)."""
        done = self.epochs_of(line)
        if self._progress is None:  # what an earlier session did has no part in the time left
            self._progress = Progress("train", total=self._total, unit="epochs", show=self._show, done=done - 1)
        self._images_per_s.append(float(line.get("images_per_s") or 0.0))
        # Workers that took the place of lost ones go over the epochs since the last checkpoint again.
        self._progress.add(max(0, done - self._progress.done), rate=self._rate())

    def epochs_of(self, line: Mapping[str, Any]) -> int:
        """Epochs of all rounds up to a line of the log."""
        return int((line["round"] - 1) * self._epochs + line["epoch"])

    def close(self) -> None:
        """Leaves the last line, if anything was done; rounds that ended early count as whole."""
        if self._progress is not None:
            self._progress.add(self._total - self._progress.done, rate=self._rate())
            self._progress.close(rate=self._rate())

    def _rate(self) -> tuple[float, str]:
        """The median over the log: the first lines are slow, and a line may be of two steps."""
        return sorted(self._images_per_s)[len(self._images_per_s) // 2], "images"


@contextmanager
def steps_told(
    title: str, *, total: int, show: bool | Literal["auto"] = "auto"
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Tells how far a training is that counts steps alone; yields what takes the lines of its log."""
    progress = Progress(title, total=total, unit="steps", show=show)
    try:
        yield lambda line: progress.add(max(0, line["step"] - progress.done))
    finally:
        progress.close()


@contextmanager
def said_if_slow(message: str, *, after_s: float | None = None) -> Iterator[None]:
    """Logs what is being done when it takes longer than a moment, so that nobody looks at nothing."""
    timer = threading.Timer(_SILENCE_S if after_s is None else after_s, _LOG.info, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Console(logging.Handler):
    """Writes the message alone to standard error, above a bar that moves there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def log_to_console() -> None:
    """Lets messages of the logger ``raydapt`` reach standard error; once is enough, twice does no harm."""
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False  # or a root handler of another package would say everything twice
    if not any(isinstance(handler, _Console) for handler in _LOG.handlers):
        _LOG.addHandler(_Console())


def silence_libraries() -> None:
    """Ray and its dependencies warn about each other's versions: nothing that a user of raydapt could mend."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def as_clock(seconds: float) -> str:
    """A duration as ``01:30`` or ``2:01:30``."""
    clock: str = tqdm.format_interval(seconds)
    return clock


def _watched(file: TextIO) -> bool:
    """Whether somebody sees a line move: in a terminal or a notebook, and not in a CI job."""
    return (_in_notebook() or file.isatty()) and os.environ.get("CI", "") in ("", "0", "false")


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and "IPKernelApp" in getattr(ipython.get_ipython(), "config", {})


def _size(file: TextIO) -> dict[str, Any]:
    """How wide a line may be: looked up each time, or fixed where a terminal says 0, as in many containers."""
    try:
        knows = os.get_terminal_size(file.fileno()).columns > 0
    except (OSError, ValueError):  # no terminal, or no file at all
        knows = True
    return {"dynamic_ncols": True} if knows else {"ncols": _COLUMNS, "nrows": _LINES}


def _rate(per_s: float, unit: str) -> str:
    """By the second, minute or hour, so that it is no small share of one; whole from 10 on, else of two digits."""
    length_s, clock = next((one for one in _CLOCKS if per_s * one[0] >= _LEAST_RATE), _CLOCKS[-1])
    rate = per_s * length_s
    return f"{f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'} {unit}/{clock}"
