"""What servers and gateways answer that is no caption: a row with a reason, or one sentence."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from raydapt.cluster.addresses import through_proxy
from raydapt.methods.configuration import load_config
from raydapt.settings.language import CaptionSettings
from raydapt.stages.asking import answer_s
from raydapt.stages.commit import STOPPED
from raydapt.stages.endpoint import EndpointClient
from raydapt.stages.questions import ANSWER, ASKED, ERROR, SECONDS, Prompt, without_thoughts
from raydapt.verbs.caption import captions
from tests.servers import JsonAnswers, served

pytest.importorskip("openai")

SCHEMA = pa.schema(
    [("row", pa.int64()), (ASKED, pa.string()), (ANSWER, pa.string()), (SECONDS, pa.float64()), (ERROR, pa.string())]
)


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(JsonAnswers, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, kind, body = self.server.answer  # type: ignore[attr-defined]
            self.answer(status, body, {"Content-Type": kind})

    with served(HTTPServer(("127.0.0.1", 0), Handler)) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydapt.stages.endpoint._PAUSE_S", 0.05)


def ask(server: HTTPServer, status: int, body: object, kind: str = "application/json") -> dict[str, object]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    server.answer = (status, kind, data)  # type: ignore[attr-defined]
    settings = CaptionSettings(engine="openai", base_url=f"http://127.0.0.1:{server.server_port}/v1", model="m")
    client = EndpointClient(lambda row: Prompt(text="what?", image=None, seed=0), settings, SCHEMA, "caption")
    try:
        return client(pa.table({"row": [0]})).to_pylist()[0]
    finally:
        client.close()


def said(text: object, reason: str = "stop") -> dict[str, object]:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def test_a_text_is_an_answer_and_thoughts_are_none(server: HTTPServer) -> None:
    assert ask(server, 200, said("A cat."))[ANSWER] == "A cat."
    assert ask(server, 200, said("<think>hm\nwell</think>\n\nA cat."))[ANSWER] == "A cat."
    assert without_thoughts("hm, well</think>A cat.") == "A cat."
    assert without_thoughts("<think>and so on") == ""
    for mark in ("<thinking>{}</thinking>", "[THINK]{}[/THINK]", "<Reasoning>{}</Reasoning>", "<thought>{}</thought>"):
        assert without_thoughts(mark.format("hm") + " A cat.") == "A cat."
        assert without_thoughts(mark.partition("{")[0] + "hm") == ""
    assert without_thoughts("A <b>cat</b>.") == "A <b>cat</b>."


@pytest.mark.parametrize(("text", "reason", "error"), [
    (None, "length", "no_text_within_max_tokens"), ("<think>still", "length", "no_text_within_max_tokens"),
    (None, "stop", "empty_answer"), ("  ", "stop", "empty_answer"), ("", "stop", "empty_answer"),
])  # fmt: skip
def test_an_empty_answer_is_a_row_with_a_reason(server: HTTPServer, text: str | None, reason: str, error: str) -> None:
    row = ask(server, 200, said(text, reason))
    assert (row[ANSWER], row[ERROR]) == (None, error)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_is_a_row(server: HTTPServer, status: int) -> None:
    row = ask(server, status, {"error": {"message": "image too large"}})
    assert row[ANSWER] is None
    assert str(row[ERROR]).startswith(f"engine: Error code: {status}")


def test_why_a_question_is_refused_is_said_whatever_form_it_has(server: HTTPServer) -> None:
    detail = {"detail": [{"msg": "image too small", "type": "value_error"}]}
    assert ask(server, 413, b"Payload too\nlarge: 30 MB", "text/plain")[ERROR] == (
        "engine: Error code: 413 - Payload too large: N MB"
    )
    assert "engine: Error code: 422 - " in str(ask(server, 422, detail)[ERROR])
    assert "image too small" in str(ask(server, 422, detail)[ERROR])


def test_an_answer_in_parts_is_their_text(server: HTTPServer) -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "A "}, {"type": "text", "text": "cat."}]
    assert ask(server, 200, said(parts))[ANSWER] == "A cat."
    assert ask(server, 200, said(parts[:1]))[ERROR] == "empty_answer"
    assert "no answer but '[1, 2]'" in str(ask(server, 200, said([1, 2]))[ERROR])


@pytest.mark.parametrize(("status", "body", "kind"), [
    (200, b"<html>login</html>", "text/html"), (200, {"choices": []}, "application/json"),
    (200, {"error": {"message": "no credit"}}, "application/json"), (200, b'{"choices": [{"mess', "application/json"),
    (401, {"error": {"message": "no key"}}, "application/json"), (404, {"error": "no model"}, "application/json"),
])  # fmt: skip
def test_no_answer_of_the_protocol_is_one_sentence(server: HTTPServer, status: int, body: object, kind: str) -> None:
    row = ask(server, status, body, kind)
    assert row[ANSWER] is None
    assert re.match(STOPPED + r"Setting caption\.base_url=.*check the address", str(row[ERROR]))
    assert "\n" not in str(row[ERROR])


def test_an_answer_in_latin_1_is_one_sentence(server: HTTPServer) -> None:
    row = ask(server, 200, json.dumps(said("Un café."), ensure_ascii=False).encode("latin-1"))
    assert row[ANSWER] is None
    assert "answered with a text that is not in UTF-8, as JSON has to be: check the address" in str(row[ERROR])
    assert "codec" not in str(row[ERROR])


class _Moody(JsonAnswers, BaseHTTPRequestHandler):
    """Answers with the next of the server's moods, an answer for ever after them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        moods = self.server.moods  # type: ignore[attr-defined]
        self.server.asked += 1  # type: ignore[attr-defined]
        status, headers = moods.pop(0) if moods else (200, {})
        if isinstance(status, bytes):
            self.answer(200, status, headers)
            return
        if status == "meet":
            self.server.meeting.wait(60)  # type: ignore[attr-defined]
            status = 200
        if status == "hang":
            self.server.over.wait(10)  # type: ignore[attr-defined]
            return
        self.answer(status, said("A cat.") if status == 200 else {"error": {"message": "later"}}, headers)


@contextmanager
def moody(
    moods: list[tuple[object, dict[str, str]]], questions: int = 1, at_a_time: int = 1
) -> Iterator[tuple[ThreadingHTTPServer, pa.Table]]:
    """A server with these moods, and what becomes of so many questions to it."""
    over = threading.Event()
    state = {"moods": list(moods), "asked": 0, "over": over, "meeting": threading.Barrier(2)}
    with served(ThreadingHTTPServer(("127.0.0.1", 0), _Moody), **state) as found:
        address = f"http://127.0.0.1:{found.server_port}/v1"
        settings = CaptionSettings(engine="openai", base_url=address, model="m", max_num_seqs=at_a_time)
        client = EndpointClient(lambda row: Prompt(text="what?", image=None, seed=0), settings, SCHEMA, "caption")
        try:
            yield found, client(pa.table({"row": list(range(questions))}))
        finally:
            client.close()
            over.set()


def test_a_server_that_is_busy_or_away_for_a_while_is_asked_again() -> None:
    soon = {"Retry-After": "0"}
    with moody([(429, soon), (500, soon), (503, soon), (502, soon)] * 3) as (server, answers):
        assert answers[ANSWER].to_pylist() == ["A cat."]
        assert server.asked == 13


@pytest.mark.slow
def test_half_an_answer_or_a_page_in_passing_is_asked_for_again() -> None:
    page = (b"<html>starting</html>", {"Content-Type": "text/html"})
    with moody([(b'{"choices": [{"mess', {}), page, (200, {}), (b'{"error": {"code": 502}}', {})], 2) as (
        server,
        table,
    ):
        assert table[ANSWER].to_pylist() == ["A cat."] * 2
        assert server.asked == 5
    with moody([(200, {}), *[(b"[]", {})] * 9], 2) as (server, table):
        assert table[ANSWER].to_pylist() == ["A cat.", None]
        assert "answered nothing of OpenAI's protocol (no answer but '[]')" in table[ERROR][1].as_py()
        assert server.asked == 4


def test_a_server_that_hangs_is_left_after_two_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydapt.stages.endpoint._TIMEOUT_S", 0.1)
    with moody([("hang", {})] * 9, questions=3) as (server, answers):
        assert server.asked == 2
    errors = answers[ERROR].to_pylist()
    assert all(error.startswith(STOPPED) and "Timeout" in error for error in errors)


@pytest.mark.parametrize(("place", "requests"), [("/v1/again", 4), ("ftp://nowhere/", 1)])
def test_redirects_in_a_circle_are_refused_at_once(place: str, requests: int) -> None:
    with moody([(307, {"Location": place})] * 99, questions=9, at_a_time=9) as (server, table):
        assert server.asked == requests
    last = place if "://" in place else f"http://127.0.0.1:{server.server_port}{place}"
    for error in table[ERROR].to_pylist():
        assert error.startswith(STOPPED + "Setting caption.base_url='http://127.0.0.1")
        assert f"leads from address to address and to no server (last to {last}): check the address" in error


@pytest.mark.slow
def test_a_wrong_address_is_asked_once_and_a_right_one_by_all_at_once() -> None:
    with moody([(401, {})] * 99, questions=9, at_a_time=9) as (server, _):
        assert server.asked == 1
    for first in (200, 400):
        with moody([(first, {}), ("meet", {}), ("meet", {})], questions=3, at_a_time=3) as (server, table):
            assert table[ANSWER].to_pylist()[1:] == ["A cat."] * 2  # each waited for the other
            assert server.asked == 3


def test_what_was_answered_before_a_server_failed_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydapt.stages.endpoint._PATIENCE_S", 0.0)
    with moody([(200, {}), (200, {}), (500, {})], questions=5) as (server, answers):
        assert server.asked == 3
    assert answers[ANSWER].to_pylist() == ["A cat.", "A cat.", None, None, None]
    assert [error is None for error in answers[ERROR].to_pylist()] == [True, True, False, False, False]


def test_a_small_set_is_described_by_a_server_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydapt.cluster.joining._init", lambda *_: pytest.fail("Ray was started"))
    with moody([], questions=0) as (server, _):
        address = f"http://127.0.0.1:{server.server_port}/v1"
        words = ["caption.engine=openai", f"caption.base_url={address}", "data.limit=7", f"store={tmp_path}"]
        config = load_config(None, ["data.source=digits", *words])
        table = captions(config, groups=False)["image_captions"].artefact.read()
        assert server.asked == 7
    assert table["caption"].to_pylist() == ["A cat."] * 7
    assert table["row"].to_pylist() == list(range(7))
    assert answer_s(replace(config.caption, replicas=2), "", images=True) is None
    assert 0 < answer_s(config.caption, "", images=True) < 0.1


def test_a_proxy_is_not_asked_for_this_machine_and_is_named_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://user:secret@127.0.0.1:9")
    with moody([]) as (_, answers):
        assert answers[ANSWER].to_pylist() == ["A cat."]
    assert through_proxy("http://10.0.0.1:8000/v1") == " through the proxy http://127.0.0.1:9"
    assert through_proxy("http://intranet/v1") == through_proxy("http://localhost:1") == ""
