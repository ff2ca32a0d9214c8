"""A server that dies half-way: the same command asks for what was not answered, and for little more."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raydapt.artefacts.captions import IMAGE_CAPTIONS
from raydapt.data.sources import resolve_source
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.settings.groups import RaySettings
from raydapt.stages.caption import caption_stage
from raydapt.stages.captioning import caption_jobs
from raydapt.store.artefact import StageResult, Store
from tests.servers import JsonAnswers, served
from tests.stages.images import write_images

pytest.importorskip("openai")
pytestmark = pytest.mark.ray
ROWS, DIES_AFTER, OPEN = 200, 150, 4


class _Mortal(JsonAnswers, BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked, lock = self.server.asked, self.server.lock  # type: ignore[attr-defined]
        with lock:
            dead = len(asked) >= self.server.dies_after  # type: ignore[attr-defined]
            if not dead:
                asked.append(question["messages"][0]["content"][0]["image_url"]["url"])
        message = {"role": "assistant", "content": "A square."}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        self.answer(401 if dead else 200, {"error": {"message": "no key"}} if dead else answer)


@pytest.fixture
def mortal() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Mortal)
    with served(server, asked=[], lock=threading.Lock(), dies_after=DIES_AFTER):
        yield server


def captions(place: Path, server: ThreadingHTTPServer) -> StageResult:
    overrides = [f"data.source={place / 'images.parquet'}", "caption.engine=openai", "caption.model=m"]
    overrides += [f"caption.base_url=http://127.0.0.1:{server.server_port}/v1", f"caption.max_num_seqs={OPEN}"]
    config = load_config(None, overrides)
    source = resolve_source(config.data.source, rows_per_part=512)
    assert len(source.parts) == 1  # what was lost as a whole, once
    job = caption_jobs(config, source)[IMAGE_CAPTIONS]
    ray_settings = RaySettings(address="local", cpus=4, progress=False)
    return caption_stage(job, known=None, ray_settings=ray_settings, store=Store(str(place / "store")))


def test_what_a_server_answered_before_it_died_is_not_asked_again(tmp_path: Path, mortal: ThreadingHTTPServer) -> None:
    write_images(tmp_path / "images.parquet", ROWS, rows_per_group=512)
    with pytest.raises(UserError, match=re.escape("caption.base_url")):
        captions(tmp_path, mortal)
    before = list(mortal.asked)  # type: ignore[attr-defined]
    assert len(before) == DIES_AFTER
    mortal.dies_after = 10 * ROWS  # type: ignore[attr-defined]
    artefact = captions(tmp_path, mortal).artefact
    table = artefact.read()
    assert table["row"].to_pylist() == list(range(ROWS))
    assert set(table["caption"].to_pylist()) == {"A square."}
    again = len(mortal.asked) - ROWS  # type: ignore[attr-defined]
    assert 0 <= again < 64 + OPEN
