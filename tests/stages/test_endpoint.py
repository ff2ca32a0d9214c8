"""What servers and gateways answer that is no caption: a row with a reason, or one sentence."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pyarrow as pa
import pytest

from raydapt.errors import UserError
from raydapt.settings.language import CaptionSettings
from raydapt.stages.endpoint import EndpointClient, without_thoughts
from raydapt.stages.llm import ANSWER, ASKED, ERROR, SECONDS, Prompt

pytest.importorskip("openai")

SCHEMA = pa.schema(
    [("row", pa.int64()), (ASKED, pa.string()), (ANSWER, pa.string()), (SECONDS, pa.float64()), (ERROR, pa.string())]
)


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, kind, body = self.server.answer  # type: ignore[attr-defined]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def ask(server: HTTPServer, status: int, body: object, kind: str = "application/json") -> dict[str, object]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    server.answer = (status, kind, data)  # type: ignore[attr-defined]
    settings = CaptionSettings(engine="openai", base_url=f"http://127.0.0.1:{server.server_port}/v1", model="m")
    client = EndpointClient(lambda row: Prompt(text="what?", image=None, seed=0), settings, SCHEMA, "caption")
    try:
        return client(pa.table({"row": [0]})).to_pylist()[0]
    finally:
        client._client.close()
        client._threads.shutdown()


def said(text: str | None, reason: str = "stop") -> dict[str, object]:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def test_a_text_is_an_answer_and_thoughts_are_none(server: HTTPServer) -> None:
    assert ask(server, 200, said("A cat."))[ANSWER] == "A cat."
    assert ask(server, 200, said("<think>hm\nwell</think>\n\nA cat."))[ANSWER] == "A cat."
    assert without_thoughts("hm, well</think>A cat.") == "A cat."
    assert without_thoughts("<think>and so on") == ""
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
    assert row[ERROR]


@pytest.mark.parametrize(("status", "body", "kind"), [
    (200, b"<html>login</html>", "text/html"), (200, {"choices": []}, "application/json"),
    (200, {"error": {"message": "no credit"}}, "application/json"), (200, b'{"choices": [{"mess', "application/json"),
    (401, {"error": {"message": "no key"}}, "application/json"), (404, {"error": "no model"}, "application/json"),
])  # fmt: skip
def test_no_answer_of_the_protocol_is_one_sentence(server: HTTPServer, status: int, body: object, kind: str) -> None:
    with pytest.raises(UserError, match=r"caption\.base_url=.*check the address") as caught:
        ask(server, status, body, kind)
    assert "\n" not in str(caught.value)
