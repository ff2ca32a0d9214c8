import fcntl
import io
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest

from raydapt.progress import Progress, TrainingProgress, said_if_slow, steps_told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("raydapt.progress.time.monotonic", lambda: now[0])
    monkeypatch.delenv("CI", raising=False)
    return now


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    logger, handler = logging.getLogger("raydapt"), Kept()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    before = logger.level
    logger.setLevel(logging.INFO)  # not by setattr: loggers remember which levels they write, and setLevel forgets that
    yield handler.lines
    logger.setLevel(before)


def test_line_tells_rate_percent_time_left_and_failed(clock: list[float]) -> None:
    progress = Progress("features", total=2000, done=500, failed=1, show=False)
    assert progress.line() == "features: 500/2,000 images (25 %), 1 failed"
    clock[0] += 2
    progress.add(500, failed=2)
    assert progress.line() == "features: 1,000/2,000 images (50 %), 250 images/s, 00:04 left, 3 failed"
    clock[0] += 3600
    progress.add(1000)
    assert progress.line() == "features: 2,000/2,000 images (100 %), 0.42 images/s, 1:00:02 in all, 3 failed"


def test_the_time_left_does_not_count_the_start_and_the_time_in_all_does(clock: list[float]) -> None:
    progress = Progress("features", total=2000, show=False)
    clock[0] += 100
    progress.begun(2.0)  # the first part took two seconds, and the actors 98 to start
    progress.add(500)
    assert progress.line() == "features: 500/2,000 images (25 %), 250 images/s, 00:06 left"
    clock[0] += 2
    progress.add(500)
    assert progress.line() == "features: 1,000/2,000 images (50 %), 250 images/s, 00:04 left"
    clock[0] += 98
    progress.add(1000)
    assert progress.line() == "features: 2,000/2,000 images (100 %), 10 images/s, 03:20 in all"
    late = Progress("features", total=2000, show=False)
    clock[0] += 1
    late.begun(5.0)  # longer ago than there was anything to count
    late.add(500)
    assert late.line() == "features: 500/2,000 images (25 %), 500 images/s, 00:03 left"


@pytest.mark.parametrize(("rows", "words"), [(2, "0.5"), (37, "9.2"), (400, "100"), (50_000, "12,500")])
def test_rates_have_the_digits_that_count(clock: list[float], rows: int, words: str) -> None:
    progress = Progress("captions", total=None, unit="captions", show=False)
    clock[0] += 4
    progress.add(rows)
    assert progress.line() == f"captions: {rows:,} captions, {words} captions/s"


@pytest.mark.parametrize(
    ("seconds", "words"), [(60, "2 trials/min"), (19, "0.11 trials/s"), (1800, "4 trials/h"), (72_000, "0.1 trials/h")]
)
def test_slow_work_is_told_by_the_minute_or_hour(clock: list[float], seconds: int, words: str) -> None:
    progress = Progress("tune", total=None, unit="trials", show=False)
    clock[0] += seconds
    progress.add(2)
    assert progress.line() == f"tune: 2 trials, {words}"


def test_terminal_sees_one_moving_line(clock: list[float], logged: list[str]) -> None:
    stream = Terminal()
    progress = Progress("features", total=4, failed=1, file=stream)
    for _ in range(4):
        clock[0] += 0.1
        progress.add(1)
    progress.close()
    text = stream.getvalue()
    assert text.count("\n") == 1
    last = text.split("\r")[-1].rstrip()
    assert last.startswith("features: 100 %|")
    assert last.endswith("| 4/4 images, 10 images/s, 00:00 in all, 1 failed")
    assert logged == []


@pytest.mark.parametrize(("columns", "width"), [(0, 79), (50, 49)])
def test_a_line_is_as_wide_as_the_terminal_or_79_where_that_is_unknown(columns: int, width: int) -> None:
    """Terminals of containers often say that they have no columns, and tqdm would write nothing."""
    code = (
        "import os, time, raydapt.progress as p; q = p.Progress('features', total=2000, failed=1)\n"
        "for _ in range(2): q.add(1000)\n"
        "q.close()"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    subprocess.run([sys.executable, "-c", code], stderr=theirs, stdin=theirs, check=True)
    os.close(theirs)
    lines = os.read(ours, 65536).decode().replace("\n", "\r").split("\r")
    os.close(ours)
    last = [line for line in lines if line.strip()][-1]
    assert last.startswith("features: 100 %|")
    assert len(last) == width


def test_steps_are_told_once_where_lost_workers_go_over_them_again(clock: list[float], logged: list[str]) -> None:
    with steps_told("lora", total=1500) as log:
        for step in (20, 40, 20, 1500):
            clock[0] += 10
            log({"step": step})
    assert logged == [
        "lora: 40/1,500 steps (3 %), 1.3 steps/s, 18:15 left",
        "lora: 1,500/1,500 steps (100 %), 38 steps/s, 00:40 in all",
    ]


@pytest.mark.parametrize(
    ("terminal", "ci", "show", "moves", "lines"),
    [
        (False, "", "auto", False, 1),
        (True, "1", "auto", False, 1),
        (True, "", "auto", True, 0),
        (True, "", False, False, 0),
        (False, "", False, False, 0),
        (False, "1", True, True, 0),
    ],
)
def test_quiet_where_nobody_watches(
    clock: list[float],
    logged: list[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    ci: str,
    show: bool,
    moves: bool,
    lines: int,
) -> None:
    monkeypatch.setenv("CI", ci)
    stream = Terminal() if terminal else io.StringIO()
    progress = Progress("features", total=2, show=show, file=stream)
    for _ in range(2):
        clock[0] += 1
        progress.add(1)
    progress.close()
    assert ("\r" in stream.getvalue()) == moves
    assert moves or stream.getvalue() == ""
    assert logged == ["features: 2/2 images (100 %), 1 images/s, 00:02 in all"][:lines]


def test_a_log_hears_of_long_work_every_half_minute(clock: list[float], logged: list[str]) -> None:
    progress = Progress("features", total=100, file=io.StringIO())
    for _ in range(10):
        clock[0] += 10
        progress.add(10)
    progress.close()
    assert [line.split(" images")[0] for line in logged] == [
        "features: 30/100", "features: 60/100", "features: 90/100", "features: 100/100",
    ]  # fmt: skip
    assert logged[0] == "features: 30/100 images (30 %), 1 images/s, 01:10 left"


def test_slow_steps_are_told_and_quick_ones_are_not(logged: list[str]) -> None:
    with said_if_slow("loading", after_s=60):
        pass
    with said_if_slow("loading a large model", after_s=0):
        for _ in range(200):
            if logged:
                break
            threading.Event().wait(0.05)
    assert logged == ["loading a large model"]


def test_training_that_goes_over_epochs_again_counts_them_once(clock: list[float], logged: list[str]) -> None:
    progress = TrainingProgress(rounds=1, epochs=4)
    for epoch in (1, 2, 3, 2, 3, 4):
        clock[0] += 1
        progress({"round": 1, "epoch": epoch, "images_per_s": 10.0})
    progress.close()
    assert logged == ["train: 4/4 epochs (100 %), 10 images/s, 00:05 in all"]


def test_training_tells_images_a_second_whatever_the_epochs(clock: list[float], logged: list[str]) -> None:
    progress = TrainingProgress(rounds=2, epochs=4)
    progress.close()
    assert logged == []  # nothing was learned
    for epoch, rate in ((3, 12.0), (4, 94.2)):  # epochs 1 and 2 are an earlier session's
        clock[0] += 0.01
        progress({"round": 1, "epoch": epoch, "images_per_s": rate})
    progress.close()  # the second round was not needed
    assert logged == ["train: 8/8 epochs (100 %), 94 images/s, 00:00 in all"]


def test_messages_reach_the_console_once() -> None:
    code = (
        "import logging, raydapt.progress as p; p.log_to_console(); p.log_to_console();"
        "logging.basicConfig(); logging.getLogger('raydapt.run.pipeline').info('done already {} %s');"
        "q = p.Progress('features', total=1); q.add(1); q.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, *rest = done.stderr.splitlines()
    assert (first, rest, done.stdout) == ("done already {} %s", [], "")
    assert second.startswith("features: 1/1 images (100 %)")


def test_without_the_command_line_messages_are_the_callers_to_show(logged: list[str]) -> None:
    logging.getLogger("raydapt.tune.sweep").info("tune: 3 trials")
    assert logged == ["tune: 3 trials"]
