"""``raydapt push``: what is written, what a hub is sent, and what is said without one."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raydapt.artefacts.captions import IMAGE_CAPTIONS
from raydapt.artefacts.synthetic_images import KIND as SYNTHETIC
from raydapt.data.classes import resolve_classes
from raydapt.data.sources import read_part, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from raydapt.store.artefact import Artefact, Store
from raydapt.store.fingerprint import Recipe
from raydapt.verbs.push import push, write_data_set
from tests.servers import JsonAnswers, served
from tests.stages.images import png


def captions(store: Path) -> Artefact:
    settings = {"prompt": "What | is\nthis?", "max_tokens": 77}
    recipe = Recipe(kind=IMAGE_CAPTIONS, settings=settings, inputs=(), weights="m")
    artefact = Store(str(store)).artefact_of(recipe)
    for part, first in ((1_000_000, 0), (1_000_001, 3)):
        table = pa.table({
            "row": [first, first + 1, first + 2], "id": [f"{first + i:016x}" for i in range(3)],
            "path": [f"{first + i}.png" for i in range(3)], "prompt": ["What?"] * 3,
            "caption": pa.array(["a cat", None, "a dog"], pa.string()), "seconds": [0.1] * 3,
            "error": pa.array([None, "corrupt", None], pa.string()), "model": ["m"] * 3})  # fmt: skip
        artefact.commit_part(part, table, {"corrupt": 1})
    artefact.finish(recipe, [1_000_000, 1_000_001], {}, {})
    return artefact


def synthetic(store: Path) -> Artefact:
    recipe = Recipe(kind=SYNTHETIC, settings={"template": "a {}."}, inputs=(), weights="p")
    artefact = Store(str(store)).artefact_of(recipe)
    table = pa.table({
        "row": [0, 1, 2], "id": ["a" * 16] * 3, "image": pa.array([png(1), png(2), None], pa.binary()),
        "label": ["oak", "elm", "elm"], "path": ["synthetic/oak/0.png", "synthetic/elm/0.png", "synthetic/elm/1.png"],
        "prompt": ["a oak."] * 3, "error": pa.array([None, None, "not_finite"], pa.string())})  # fmt: skip
    artefact.commit_part(0, table)
    artefact.finish(recipe, [0], {}, {})
    return artefact


def card_of(folder: Path) -> tuple[dict[str, object], str]:
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_captions_as_a_data_set(tmp_path: Path) -> None:
    write_data_set(captions(tmp_path / "store"), tmp_path / "out", "org/set")
    table = pq.read_table(tmp_path / "out" / "data")
    assert table["caption"].to_pylist() == ["a cat", "a dog"] * 2
    assert set(table.column_names) == {"id", "path", "prompt", "caption", "model"}
    head, text = card_of(tmp_path / "out")
    assert head["configs"] == [{"config_name": "default", "data_files": "data/*.parquet"}]
    assert "4 rows. 2 more could not be made" in text
    assert "| `prompt` | What \\| is this? |" in text


def test_synthetic_images_as_a_data_set_that_is_read_again(tmp_path: Path) -> None:
    write_data_set(synthetic(tmp_path / "store"), tmp_path / "out", "org/set")
    source = resolve_source(str(tmp_path / "out"), rows_per_part=9)
    assert resolve_classes(DataSettings(source=str(tmp_path / "out")), source).names == ("elm", "oak")
    rows = read_part(source.parts[0], DataSettings()).to_pylist()
    assert [(row["image"], row["label"]) for row in rows] == [(png(1), "oak"), (png(2), "elm")]


class _Hub(JsonAnswers, BaseHTTPRequestHandler):
    """As much of the hub's protocol as making a repository and committing small files needs."""

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else b"".join(iter(self._chunk, b""))
        self.server.asked.append((self.path, body))  # type: ignore[attr-defined]
        address = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        if self.server.refuses:  # type: ignore[attr-defined]
            self.answer(403, {"error": "Forbidden"})
        elif self.path.endswith("/repos/create"):
            self.answer(200, {"url": f"{address}/datasets/org/set"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self.answer(200, {"files": files})
        else:
            self.answer(
                200,
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{address}/datasets/org/set/commit/0",
                    "hookOutput": "",
                },
            )

    def do_GET(self) -> None:
        self.answer(
            200, {"id": "org/set", "sha": "0" * 40, "siblings": [], "private": True, "name": "me", "type": "user"}
        )

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline() or b"0", 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    with served(ThreadingHTTPServer(("127.0.0.1", 0), _Hub), asked=[], refuses=False) as server:
        yield server


def command(what: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads its environment when it is imported."""
    run = [sys.executable, "-m", "raydapt.cli", "push", str(what), "org/set"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"} | environment
    return subprocess.run(run, env=own, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_a_hub_gets_the_files_in_a_private_repository(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    artefact = captions(tmp_path / "store")
    address = f"http://127.0.0.1:{hub.server_port}"
    ran = command(Path(artefact.folder.path), HF_ENDPOINT=address, HF_TOKEN="hf_x", HF_HOME=str(tmp_path / "hf"))
    assert ran.returncode == 0, ran.stderr
    assert "/datasets/org/set (private)" in ran.stdout
    made = json.loads(next(body for path, body in hub.asked if path.endswith("/repos/create")))  # type: ignore[attr-defined]
    assert (made["visibility"], made["type"], made["name"]) == ("private", "dataset", "set")
    commit = next(body for path, body in hub.asked if "/commit/" in path)  # type: ignore[attr-defined]
    files = [json.loads(line)["value"] for line in commit.splitlines() if json.loads(line)["key"] == "file"]
    assert {file["path"] for file in files} == {"README.md", "data/train.parquet"}
    sent = next(file for file in files if file["path"] == "README.md")
    assert base64.b64decode(sent["content"]).decode() == Path(f"{artefact.folder.path}-hub/README.md").read_text()


@pytest.mark.slow
def test_what_is_said_where_nothing_can_be_sent(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    artefact = captions(tmp_path / "store")
    place = Path(artefact.folder.path)
    ran = command(place, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert ran.returncode == 0, ran.stderr
    assert f"The hub cannot be reached; the files are in '{place}-hub'" in ran.stdout
    assert "`hf upload org/set" in ran.stdout
    assert Path(f"{place}-hub/data/train.parquet").is_file()
    hub.refuses = True  # type: ignore[attr-defined]
    address = f"http://127.0.0.1:{hub.server_port}"
    ran = command(place, HF_ENDPOINT=address, HF_TOKEN="hf_x", HF_HOME=str(tmp_path / "hf"))
    assert ran.returncode == 2
    assert "hf auth login" in ran.stderr


def test_what_cannot_be_pushed_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ORGANISATION/NAME"):
        push(str(tmp_path), "name")
    with pytest.raises(UserError):
        push(str(tmp_path), "org/name")
    recipe = Recipe(kind="features", settings={}, inputs=(), weights="")
    other = Store(str(tmp_path / "store")).artefact_of(recipe)
    other.commit_part(0, pa.table({"row": [0]}))
    other.finish(recipe, [0], {}, {})
    with pytest.raises(UserError, match="holds features, which is nothing to publish"):
        push(other.folder.path, "org/name")
