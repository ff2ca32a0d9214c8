import os
from pathlib import Path

import fsspec
import pytest

from raydapt.data.folders import label_and_split, layout_of
from raydapt.data.sources import read_label_names, read_part, resolve_source
from raydapt.settings.groups import DataSettings
from tests.data.images import png

DATA = DataSettings(max_image_bytes=1000)


def write(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))


def test_layouts() -> None:
    assert layout_of(["1.png", "2.png"]) == "flat"
    assert layout_of(["cat/1.png", "dog/deep/2.png"]) == "class"
    assert layout_of(["cat/1.png", "2.png"]) == "flat"
    assert layout_of(["Train/cat/1.png", "test/dog/2.png"]) == "split/class"
    assert layout_of(["train/1.png", "test/2.png"]) == "split"
    assert layout_of(["train/cat/1.png", "test/2.png"]) == "split"
    assert layout_of(["train/cat/1.png", "cat/2.png"]) == "class"
    assert label_and_split("cat/deep/1.png", "class") == ("cat", None)
    assert label_and_split("Train/cat/1.png", "split/class") == ("cat", "train")
    assert label_and_split("test/1.png", "split") == (None, "test")
    assert label_and_split("1.png", "flat") == (None, None)


@pytest.mark.parametrize("rows_per_part", [1, 2, 3, 100])
@pytest.mark.parametrize("limit", [None, 2, 9])
def test_parts_hold_every_file_once(tmp_path: Path, rows_per_part: int, limit: int | None) -> None:
    names = ["b/1.png", "a/1.png", "a/2.png", "c d/x.png", "b/0.png"]
    write(tmp_path, names)
    source = resolve_source(str(tmp_path), rows_per_part=rows_per_part, limit=limit)
    rows = [row for part in source.parts for row in read_part(part, DATA).to_pylist()]
    assert [row["path"] for row in rows] == sorted(names)[:limit]
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert all(row["label"] == row["path"].split("/")[0] for row in rows)
    assert all((part.rows or 0) <= rows_per_part for part in source.parts)
    assert source.label_names == read_label_names(source) == ("a", "b", "c d")


def test_splits_of_class_folders(tmp_path: Path) -> None:
    write(tmp_path, ["train/a/1.png", "train/b/1.png", "test/a/1.png"])
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert source.splits == ("test", "train")
    assert source.label_names == ("a", "b")
    assert read_part(source.parts[0], DATA)["split"].to_pylist() == ["test", "train", "train"]


def test_bad_files_are_rows(tmp_path: Path) -> None:
    write(tmp_path, ["good.png"])
    (tmp_path / "a_empty.png").write_bytes(b"")
    (tmp_path / "b_large.png").write_bytes(b"x" * 2000)
    (tmp_path / "c_gone.png").symlink_to(tmp_path / "nowhere")
    source = resolve_source(str(tmp_path), rows_per_part=10)
    (tmp_path / "good2.png").write_bytes(b"later than the listing")
    table = read_part(source.parts[0], DATA)
    assert table["error"].to_pylist() == ["empty", "too_many_bytes", "unreadable", None]
    assert table["image"].to_pylist() == [None, None, None, png(0)]
    assert table["id"].null_count == 0
    assert len(set(table["id"].to_pylist())) == 4


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102 - bytes
    with open(folder + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(png(1))
    source = resolve_source(str(tmp_path), rows_per_part=10)
    row = read_part(source.parts[0], DATA).to_pylist()[0]
    assert row["error"] is None
    assert row["label"] == source.label_names[0] == "caf\\udce9"
    assert row["path"] == "caf\\udce9/\\udcff.png"


def test_strange_class_folders(tmp_path: Path) -> None:
    names = ["<b>bold", "{}", "🚀 rocket", "a'b\"c", "..x"]
    write(tmp_path, [f"{name}/1.png" for name in names])
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert set(source.label_names) == set(names) - {"..x"}
    assert read_part(source.parts[0], DATA)["error"].null_count == 4


@pytest.mark.parametrize("protocol", ["file", "memory", "elsewhere"])
def test_other_file_systems(tmp_path: Path, protocol: str) -> None:
    from tests.data.test_files import ElsewhereFileSystem

    fsspec.register_implementation("elsewhere", ElsewhereFileSystem, clobber=True)
    address = f"{protocol}://{tmp_path}"
    filesystem, path = fsspec.core.url_to_fs(address)
    for name, data in (("a/1.png", png(0)), ("b/2.png", b""), ("b/3.png", png(2) * 100)):
        filesystem.pipe(f"{path}/{name}", data) if protocol == "memory" else write_bytes(tmp_path / name, data)
    source = resolve_source(address, rows_per_part=2)
    rows = [row for part in source.parts for row in read_part(part, DATA).to_pylist()]
    assert [(row["label"], row["error"]) for row in rows] == [("a", None), ("b", "empty"), ("b", "too_many_bytes")]
    assert rows[0]["image"] == png(0)


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_hundred_thousand_files_are_planned_without_opening_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from raydapt.data import files

    def endless(folder: str) -> list[tuple[str, bool, int, str]]:
        if folder.endswith("many"):
            return [(f"class{c}", True, 0, "") for c in range(100)]
        return [(f"{i}.jpg", False, 9, "1") for i in range(1000)]

    monkeypatch.setattr(files, "_scan_local", endless)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.info", lambda self, path: {"type": "directory"})
    source = resolve_source("file:///many", rows_per_part=1024)
    assert source.rows == 100_000
    assert len(source.parts) == 98
    assert len(source.label_names) == 100
