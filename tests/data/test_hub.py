from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import HfFileSystem

from raydapt.data.sources import read_parts, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import png
from tests.data.test_webdataset import samples, write_tar


class FakeHub(MemoryFileSystem):
    """What `HfFileSystem` looks like to its users, without a network."""

    protocol = "hf"
    store: ClassVar[dict[str, object]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hf://").strip("/") if path.strip("/") else ""

    def unstrip_protocol(self, name: str) -> str:
        return "hf://" + name.strip("/")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    fsspec.register_implementation("hf", FakeHub, clobber=True)
    FakeHub.store.clear()
    yield FakeHub()
    fsspec.register_implementation("hf", HfFileSystem, clobber=True)


def images(address: str) -> list[tuple[object, object, object]]:
    source = resolve_source(address, rows_per_part=4)
    rows = [row for _, table in read_parts(source.parts, DataSettings()) for row in table.to_pylist()]
    return [(row["image"], row["split"], row["label"]) for row in rows]


def write_parquet(hub: FakeHub, path: str, first: int, n: int) -> None:
    with hub.open(path, "wb") as file:
        pq.write_table(pa.table({"image": [png(i) for i in range(first, first + n)], "label": [0] * n}), file)


def test_parquet_files_of_a_repository(hub: FakeHub) -> None:
    hub.pipe("/datasets/org/name/README.md", b"words")
    hub.pipe("/datasets/org/name/assets/logo.png", png(99))
    write_parquet(hub, "/datasets/org/name/data/train-00000-of-00001.parquet", 0, 5)
    write_parquet(hub, "/datasets/org/name/data/test-00000-of-00001.parquet", 5, 3)
    expected = [(png(i), "test", "0") for i in range(5, 8)] + [(png(i), "train", "0") for i in range(5)]
    assert images("hf://datasets/org/name") == images("hf://datasets/org/name/data/") == expected


def test_the_hubs_own_conversion_stands_in(hub: FakeHub) -> None:
    hub.pipe("/datasets/org/name/data.zip", b"?")
    write_parquet(hub, "/datasets/org/name@~parquet/default/train/0000.parquet", 0, 2)
    write_parquet(hub, "/datasets/org/name@~parquet/other/train/0000.parquet", 2, 2)
    assert images("hf://datasets/org/name/default") == [(png(0), "train", "0"), (png(1), "train", "0")]
    assert len(images("hf://datasets/org/name")) == 4


def test_tars_and_images_of_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", samples(3))
    hub.pipe("/datasets/org/wds/test/0.tar", (tmp_path / "x.tar").read_bytes())
    assert images("hf://datasets/org/wds") == [(png(i), "test", str(i)) for i in range(3)]
    hub.pipe("/datasets/org/folders/train/cat/1.png", png(1))
    hub.pipe("/datasets/org/folders/test/dog/1.png", png(2))
    assert images("hf://datasets/org/folders") == [(png(2), "test", "dog"), (png(1), "train", "cat")]


def test_faults_are_sentences(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="could not be read from the hub"):
        resolve_source("hf://datasets/org/nothing", rows_per_part=4)
    for address in ("hf://org/name", "hf://datasets/"):
        with pytest.raises(UserError, match="hf://datasets/ORGANISATION/NAME"):
            resolve_source(address, rows_per_part=4)

    def offline(self: FakeHub, path: str) -> None:
        raise httpx.ConnectError("[Errno -2] Name or service not known\nmore")

    monkeypatch.setattr(FakeHub, "info", offline)
    with pytest.raises(UserError, match="check the name and the network") as caught:
        resolve_source("hf://datasets/org/name", rows_per_part=4)
    assert "\n" not in str(caught.value)


def test_the_real_file_system_knows_the_addresses() -> None:
    filesystem, path = fsspec.core.url_to_fs("hf://datasets/org/name@~parquet/default")
    assert isinstance(filesystem, HfFileSystem)
    assert filesystem.unstrip_protocol(path).startswith("hf://datasets/org/name@~parquet")
