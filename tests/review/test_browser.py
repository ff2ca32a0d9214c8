"""A person at the page: a real Chromium, the keyboard, a server that is killed, and the right answers at the end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raydapt.store.run_record import Run
from tests.review.runs import IMAGES, NAMES, make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]
_WAIT_MS = 60_000


class Server:
    """`raydapt review` in a process of its own."""

    def __init__(self, run: Run) -> None:
        command = [sys.executable, "-m", "raydapt.cli", "review", run.path, "--no-browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)
        assert found is not None, line
        self.address = found[0]

    def end(self, number: int) -> str:
        self.process.send_signal(number)
        with self.process:
            return self.process.communicate(timeout=60)[0]


def test_thirty_answers_by_keyboard_with_undo_reload_and_a_killed_server(tmp_path: Path) -> None:
    from playwright.sync_api import Page, sync_playwright

    run = make_run(tmp_path, "transduct")
    ids = [row["id"] for row in _predictions(run)]
    server = Server(run)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else [])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)

        def shown(of: Page) -> str:
            of.wait_for_selector("#image:not([hidden])", timeout=_WAIT_MS)
            return str(of.get_attribute("#image", "src")).removeprefix("image/")

        def press(key: str) -> None:
            done = int(page.get_attribute("body", "data-settled") or 0)
            page.keyboard.press(key)
            page.wait_for_selector(f'body[data-settled="{done + 1}"]', timeout=_WAIT_MS)

        page.goto(server.address, timeout=_WAIT_MS)
        page.wait_for_selector('body[data-settled="1"]', timeout=_WAIT_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        given = {}
        for _ in range(14):
            given[shown(page)] = 1 + ids.index(shown(page)) % 3
            press(str(given[shown(page)]))
        first = shown(page)
        press("3" if ids.index(first) % 3 != 2 else "1")  # a mistake
        press("Backspace")
        assert shown(page) == first
        page.reload()
        page.wait_for_selector('body[data-settled="1"]', timeout=_WAIT_MS)
        assert shown(page) == first
        server.end(signal.SIGKILL)
        press("1")
        assert "does not answer" in page.inner_text("#error")
        assert wrong
        assert all("ERR_CONNECTION" in line for line in wrong), wrong
        wrong.clear()
        server = Server(run)
        page.goto(server.address, timeout=_WAIT_MS)
        page.wait_for_selector('body[data-settled="1"]', timeout=_WAIT_MS)
        while len(given) < 30:
            given[shown(page)] = 1 + ids.index(shown(page)) % 3
            press(str(given[shown(page)]))
        assert "30 of 60 answered" in page.inner_text("#count")
        assert "95 % interval" in page.inner_text("#runs")
        assert page.inner_text("#classes").count("<b>sea & lake</b>") == 1
        assert wrong == []
        browser.close()
    told = server.end(signal.SIGINT)
    stored = json.loads(run.read_bytes("review.json"))
    assert {a["id"]: NAMES.index(a["name"]) + 1 for a in stored["answers"]} == given
    assert len(stored["answers"]) == 30
    results = json.loads(run.read_bytes("review-results.json"))
    right = sum(NAMES.index(row["predicted"]) == i % 3 for i, row in enumerate(_predictions(run)))
    adapted = results["runs"][1]
    assert adapted["low"] <= 100 * right / IMAGES <= adapted["high"]
    assert "30 of 90 images answered" in told


def _predictions(run: Run) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, object]] = pq.read_table(run.file("predictions.parquet")).to_pylist()
    return rows
