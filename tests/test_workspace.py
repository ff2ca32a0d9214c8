import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import LocalFileSystem

from raydapt.errors import UserError
from raydapt.store.artefact import Artefact, Store
from raydapt.store.environment import environment, versions
from raydapt.store.fingerprint import Recipe, canonical_json, fingerprint
from raydapt.store.folder import Folder
from raydapt.store.run_record import Run, run_name

RECIPE = Recipe(kind="features", settings={"limit": None, "px": 32}, inputs=("source",), weights="mini@1")


def table_of(part: int, rows: int = 50) -> pa.Table:
    generator = np.random.default_rng(part)
    return pa.table({"row": np.arange(rows) + part * rows, "value": generator.standard_normal(rows)})


def fill(artefact: Artefact, parts: range) -> None:
    for part in parts:
        artefact.commit_part(part, table_of(part), {"corrupt": part} if part else {})


@pytest.fixture(params=["local", "memory", "pyarrow"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    if request.param == "pyarrow":  # as for s3:// where s3fs is not installed
        wrapped = ArrowFSWrapper(LocalFileSystem())
        monkeypatch.setattr("raydapt.store.folder._open", lambda url: (wrapped, url))
        return Store(str(tmp_path / "store"))
    return Store(f"memory://{tmp_path.name}/store")


def test_fingerprint_knows_content_not_spelling() -> None:
    name = fingerprint("features", {"a": 1.0, "b": (1, 2)}, ["x"], "w")
    assert name == fingerprint("features", {"b": [1, 2], "a": 1}, ["x"], "w")
    assert len(name) == 16
    assert int(name, 16) >= 0
    others = [
        fingerprint("pixels", {"a": 1.0, "b": (1, 2)}, ["x"], "w"),
        fingerprint("features", {"a": 1.5, "b": (1, 2)}, ["x"], "w"),
        fingerprint("features", {"a": 1.0, "b": (2, 1)}, ["x"], "w"),
        fingerprint("features", {"a": 1.0, "b": (1, 2)}, ["x", ""], "w"),
        fingerprint("features", {"a": 1.0, "b": (1, 2)}, ["x"], "v"),
    ]
    assert len({name, *others}) == 6


def test_canonical_json_refuses_what_json_cannot_hold() -> None:
    assert canonical_json({"b": 0.1, "a": 1e-7}) == '{"a":1e-07,"b":0.1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
    with pytest.raises(TypeError):
        canonical_json({1, 2})


def test_commit_finish_read(store: Store) -> None:
    artefact = store.artefact_of(RECIPE)
    assert not artefact.complete()
    assert artefact.committed_parts() == set()
    with artefact.lock():
        fill(artefact, range(3))
        assert not artefact.complete()
        with pytest.raises(RuntimeError, match="not committed"):
            artefact.finish(RECIPE, range(4), {}, {})
        artefact.finish(RECIPE, range(3), {"seconds": 1.5}, versions())
    again = store.artefact("features", RECIPE.fingerprint)
    assert again.complete()
    manifest = again.manifest
    assert manifest.rows == 150
    assert manifest.errors == {"corrupt": 3}
    assert manifest.stats == {"seconds": 1.5}
    assert manifest.settings == {"limit": None, "px": 32}
    assert [shard.part for shard in manifest.shards] == [0, 1, 2]
    expected = pa.concat_tables(table_of(part) for part in range(3))
    assert again.read().replace_schema_metadata(None).equals(expected)
    assert again.read(["row"]).column_names == ["row"]
    assert [table.num_rows for table in again.iter_tables()] == [50, 50, 50]


def test_unfinished_artefact_keeps_its_parts(store: Store) -> None:
    fill(store.artefact_of(RECIPE), range(2))
    again = store.artefact_of(RECIPE)
    assert not again.complete()
    with pytest.raises(RuntimeError, match="not finished"):
        again.read()
    assert again.committed_parts() == {0, 1}
    assert (again.committed_rows(), again.committed_errors()) == (100, {"corrupt": 1})


def test_of_large_shards_the_wanted_columns_alone_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact = store.artefact_of(RECIPE)
    fill(artefact, range(3))
    artefact.finish(RECIPE, range(3), {}, {})
    whole = artefact.read(["row"])
    monkeypatch.setattr("raydapt.store.artefact._WHOLE_BYTES", 0)
    read, bytes_read = artefact.folder.read, list[str]()
    monkeypatch.setattr(artefact.folder, "read", lambda name: bytes_read.append(name) or read(name))
    assert artefact.read(["row"]).equals(whole)
    assert set(bytes_read) == {"manifest.json"}
    assert next(artefact.iter_tables([], optional=["row", "of a later release"])).column_names == ["row"]
    artefact.folder.remove("part-00001.parquet")
    with pytest.raises(
        UserError, match=r"'part-00001\.parquet' of the stored features .* is damaged and was set aside"
    ):
        artefact.read(["row"])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "emptied", "other part"])
def test_damaged_shard_alone_is_made_again(store: Store, damage: str) -> None:
    artefact = store.artefact_of(RECIPE)
    fill(artefact, range(4))
    shards = artefact.finish(RECIPE, range(4), {}, {}).shards
    folder, name = artefact.folder, "part-00002.parquet"
    data = bytearray(folder.read(name))
    data[len(data) // 3] ^= 0xFF
    if damage == "gone":
        folder.remove(name)
    else:
        content = {"truncated": bytes(data[:-7]), "flipped": bytes(data), "emptied": b""}
        folder.write(name, content.get(damage, folder.read("part-00001.parquet")))
    again = store.artefact_of(RECIPE)
    # A flipped byte keeps the size: reading finds it, and sets the part aside.
    if damage == "flipped":
        with pytest.raises(UserError, match="run the same command again"):
            again.read()
    assert not again.complete()
    assert again.committed_parts() == {0, 1, 3}
    again.commit_part(2, table_of(2), {"corrupt": 2})
    assert again.finish(RECIPE, range(4), {}, {}).shards == shards
    assert store.artefact_of(RECIPE).complete()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"kind": "features"}', b"\xff\xfe", b"[]"])
def test_manifest_deleted_or_broken(store: Store, content: bytes | None) -> None:
    artefact = store.artefact_of(RECIPE)
    fill(artefact, range(2))
    artefact.finish(RECIPE, range(2), {}, {})
    if content is None:
        artefact.folder.remove("manifest.json")
    else:
        artefact.folder.write("manifest.json", content)
    again = store.artefact_of(RECIPE)
    assert not again.complete()
    assert again.committed_parts() == {0, 1}


def test_manifest_of_another_artefact_does_not_count(store: Store) -> None:
    artefact = store.artefact_of(RECIPE)
    fill(artefact, range(1))
    artefact.finish(RECIPE, range(1), {}, {})
    other = store.artefact("features", "0" * 16)
    for name in artefact.folder.sizes():
        if not name.startswith("."):
            other.folder.write(name, artefact.folder.read(name))
    assert not other.complete()


def test_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    one, two = (Store(str(tmp_path / name)).artefact_of(RECIPE) for name in "ab")
    assert one.commit_part(0, table_of(0)) == two.commit_part(0, table_of(0))


@pytest.mark.parametrize("name", ["../x", "Features", "a/b", ""])
def test_names_are_the_programs_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not an artefact's name"):
        Store(str(tmp_path)).artefact(name, "0" * 16)
    with pytest.raises(ValueError, match="not an artefact's name"):
        Store(str(tmp_path)).artefact("features", name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_full_disk_leaves_no_partial_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    artefact = Store(str(tmp_path)).artefact_of(RECIPE)
    fill(artefact, range(1))

    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("raydapt.store.folder.os.fsync", refuse)
    with pytest.raises(UserError, match=os.strerror(code)) as caught:
        artefact.commit_part(1, table_of(1))
    assert "store=" in str(caught.value)
    monkeypatch.undo()
    assert set(artefact.folder.sizes()) == {"part-00000.parquet"}
    assert Store(str(tmp_path)).artefact_of(RECIPE).committed_parts() == {0}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_device_is_told(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "r")
    run.make()
    Path(run.file("metrics.jsonl")).symlink_to("/dev/full")
    with pytest.raises(UserError, match="is full"):
        run.append_jsonl("metrics.jsonl", {"loss": 1.0})


def test_unwritable_places_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"runs='.*file' cannot be written"):
        Run(str(tmp_path / "file"), "r").make()
    with pytest.raises(UserError, match=r"store='.*file' cannot be written"):
        Store(str(tmp_path / "file")).artefact_of(RECIPE).commit_part(0, table_of(0))
    with pytest.raises(UserError, match="names no usable storage"):
        Store("nonsense://bucket")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        Run(str(tmp_path), "r").make()


def test_lock_waits_or_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = (Folder(str(tmp_path), setting="store") for _ in range(2))
    order = []

    def wait() -> None:
        with second.lock(wait=True):
            order.append("second")

    with first.lock(wait=True):
        with pytest.raises(UserError, match="Another raydapt process"), second.lock(wait=False):
            pass
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(timeout=0.3)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert "waiting for another" in capfd.readouterr().err


def test_run_folder_refuses_a_second_driver(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "r")
    with run.lock(), pytest.raises(UserError, match="let it finish"), Run(str(tmp_path), "r").lock():
        pass
    with run.lock():
        pass


def test_what_ray_train_is_given_leads_to_the_same_files(tmp_path: Path) -> None:
    assert Folder(str(tmp_path), setting="runs").arrow_filesystem() is None  # a path is enough
    folder = Folder(f"memory://{tmp_path.name}/runs", setting="runs").child("r", "ray_train")
    folder.write("a", b"1")
    filesystem = pickle.loads(pickle.dumps(folder.arrow_filesystem()))
    assert filesystem.open_input_stream(folder.file("a")).read() == b"1"


WRITER = """
import os, signal, sys
import pyarrow as pa
import raydapt.store.folder
from raydapt.store.artefact import Store
from tests.test_workspace import RECIPE, table_of
artefact = Store(sys.argv[1]).artefact_of(RECIPE)
def die(handle):
    os.kill(os.getpid(), signal.SIGKILL)
with artefact.lock():
    artefact.commit_part(0, table_of(0))
    raydapt.store.folder.os.fsync = die
    artefact.commit_part(1, table_of(1))
"""


@pytest.mark.chaos
def test_writer_killed_before_its_rename(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    artefact = Store(str(tmp_path)).artefact_of(RECIPE)
    assert any(name.startswith(".tmp-") for name in artefact.folder.sizes())
    with artefact.lock(wait=False):  # the lock died with its process, and what it left is swept away
        assert not any(name.startswith(".tmp-") for name in artefact.folder.sizes())
        assert artefact.committed_parts() == {0}


def test_run_files(tmp_path: Path) -> None:
    for root in (str(tmp_path), f"memory://{tmp_path.name}/runs"):
        run = Run(root, "cpl-digits")
        assert not run.exists("metrics.json")
        run.write_json("metrics.json", {"top1": 0.5})
        run.write_bytes("a.bin", b"\0")
        run.append_jsonl("metrics.jsonl", {"step": 1})
        run.append_jsonl("metrics.jsonl", {"step": 2})
        assert run.exists("metrics.json")
        assert run.read_json("metrics.json") == {"top1": 0.5}
        assert [json.loads(line)["step"] for line in run.read_bytes("metrics.jsonl").splitlines()] == [1, 2]
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.write_json("metrics.json", {"top1": float("nan")})
        assert run.read_json("metrics.json") == {"top1": 0.5}
        with pytest.raises(FileNotFoundError):
            run.read_bytes("absent")
    assert (tmp_path / "cpl-digits" / "metrics.json").is_file()
    assert fsspec.filesystem("memory").exists(f"/{tmp_path.name}/runs/cpl-digits/metrics.json")


@pytest.mark.parametrize(
    ("dataset", "short"),
    [
        ("digits", "digits"),
        ("s3://bucket/my set/", "my-set"),
        ("../../etc/<b>$(x)", "b-x"),
        ("C:\\data\\x.parquet", "x.parquet"),
        ("é😀", "unnamed"),
        ("a" * 500, "a" * 40),
    ],
)
def test_run_names_are_safe(dataset: str, short: str) -> None:
    assert run_name("cpl", dataset, "ul", 3, "0123456789abcdef") == f"cpl-{short}-ul-s3-01234567"
    assert Run("runs", "../..").name == "unnamed"


def test_environment_tells_versions() -> None:
    found = environment()
    assert found["python"].startswith("3.")
    assert {"ray", "torch", "open_clip_torch", "raydapt", "platform", "device", "git"} <= set(found)
    json.dumps(found)
