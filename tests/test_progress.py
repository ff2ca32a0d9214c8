import io

import pytest

from raydapt.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("raydapt.progress.time.monotonic", lambda: now[0])
    monkeypatch.delenv("CI", raising=False)
    return now


def test_line_tells_rate_percent_time_left_and_failed(clock: list[float]) -> None:
    progress = Progress("features", total=2000, done=500, failed=1, stream=io.StringIO())
    clock[0] += 2
    progress.add(500, failed=2)
    assert progress.line() == "features: 1000/2000 images (50 %), 250.0 images/s, 4 s left, 3 failed"
    clock[0] += 3600
    progress.add(1000)
    assert progress.line() == "features: 2000/2000 images (100 %), 0.4 images/s, 1 h 00 min in all, 3 failed"


def test_line_without_a_total(clock: list[float]) -> None:
    progress = Progress("captions", total=None, unit="captions", stream=io.StringIO())
    clock[0] += 4
    progress.add(2)
    assert progress.line() == "captions: 2 captions, 0.5 captions/s"


def test_terminal_sees_one_moving_line(clock: list[float]) -> None:
    stream = Terminal()
    progress = Progress("features", total=4, stream=stream)
    for _ in range(4):
        clock[0] += 0.1
        progress.add(1)
    progress.close()
    text = stream.getvalue()
    assert text.count("\r") == 3  # at 0.1 s, at 0.4 s, and the last one
    assert text.count("\n") == 1
    assert text.endswith("4/4 images (100 %), 10.0 images/s, 0 s in all\n")


@pytest.mark.parametrize(
    ("terminal", "ci", "show", "lines"),
    [
        (False, "", "auto", 1),
        (True, "1", "auto", 1),
        (True, "", False, 0),
        (False, "", False, 0),
        (False, "1", True, 3),
    ],
)
def test_quiet_where_nobody_watches(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, terminal: bool, ci: str, show: bool, lines: int
) -> None:
    monkeypatch.setenv("CI", ci)
    stream = Terminal() if terminal else io.StringIO()
    progress = Progress("features", total=2, show=show, stream=stream)
    for _ in range(2):
        clock[0] += 1
        progress.add(1)
    progress.close()
    assert stream.getvalue().count("\n") == lines
    assert "\r" not in stream.getvalue()
