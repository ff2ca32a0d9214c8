import os
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from raydapt.data.files import expand_braces, list_data, open_filesystem, split_of_name
from raydapt.errors import UserError


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("x-{08..10}.tar") == ["x-08.tar", "x-09.tar", "x-10.tar"]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expand_braces("plain{}{x}.tar") == ["plain{}{x}.tar"]
    with pytest.raises(UserError, match="more than"):
        expand_braces("x-{0..999999999}.tar")


@pytest.mark.parametrize(("name", "split"), [
    ("data/train-00000-of-00002.parquet", "train"), ("default/test/0000.parquet", "test"),
    ("validation.parquet", "validation"),
    ("Train_0.tar", "train"), ("trainer.parquet", None), ("data/0000.parquet", None), ("testing/x/0.tar", None),
])  # fmt: skip
def test_splits_in_names(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


def test_listing_is_ordered_and_leaves_out_what_is_no_data(tmp_path: Path) -> None:
    hidden = (".hidden/1.png", "b/.thumb.png", "__MACOSX/1.png", "cache-1.arrow")
    for name in ("b/2.JPG", "b/10.png", "a/x.webp", "z.jpeg", "notes.txt", "t.parquet", "s.tar", *hidden):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    found = list_data(str(tmp_path))
    assert found.images == ["a/x.webp", "b/10.png", "b/2.JPG", "z.jpeg"]
    assert [table.name for table in found.tables] == ["t.parquet"]
    assert [tar.name for tar in found.tars] == ["s.tar"]
    assert found.tars[0].size == 5


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"1")
    (tmp_path / "a" / "back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert list_data(str(tmp_path)).images == ["a/1.png", "a/gone.png"]


def test_a_folder_that_several_links_name_is_each_of_them(tmp_path: Path) -> None:
    (tmp_path / "pool" / "cat").mkdir(parents=True)
    (tmp_path / "pool" / "cat" / "1.png").write_bytes(b"1")
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        (tmp_path / "set" / split / "cat").symlink_to(tmp_path / "pool" / "cat", target_is_directory=True)
        (tmp_path / "set" / split / "own.png").symlink_to(tmp_path / "pool" / "cat" / "1.png")
    names = ["test/cat/1.png", "test/own.png", "train/cat/1.png", "train/own.png"]
    assert list_data(str(tmp_path / "set")).images == names


class ElsewhereFileSystem(LocalFileSystem):
    """A file system that is none of this machine, as far as the code can tell."""

    protocol = "elsewhere"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("elsewhere://"))

    def unstrip_protocol(self, name: str) -> str:
        return f"elsewhere://{self._strip_protocol(name)}"


def test_every_file_system_lists_the_same(tmp_path: Path) -> None:
    fsspec.register_implementation("elsewhere", ElsewhereFileSystem, clobber=True)
    memory = fsspec.filesystem("memory")
    for name in ("b/2.jpg", "b/10.png", "a/x.webp", "z.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
        memory.pipe(f"/listing/{name}", b"12345")
    expected = list_data(str(tmp_path))
    for address in (f"file://{tmp_path}", f"elsewhere://{tmp_path}", "memory://listing"):
        found = list_data(address)
        assert found.images == expected.images
        filesystem, path = open_filesystem(found.root)
        assert filesystem.cat_file(f"{path}/z.jpeg") == b"12345"
    memory.rm("/listing", recursive=True)


def test_pyarrow_stands_in_for_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.png").write_bytes(b"12345")

    def missing(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match="Install s3fs"):
        open_filesystem("nonsense://x")
    local = SimpleNamespace(from_uri=lambda uri: (fs.LocalFileSystem(), str(tmp_path)))
    monkeypatch.setattr("raydapt.data.files.pyarrow", SimpleNamespace(fs=SimpleNamespace(FileSystem=local)))
    found = list_data("s3://bucket")
    assert found.images == ["1.png"]
    filesystem, path = open_filesystem(found.root)
    assert filesystem.cat_file(f"{path}/1.png") == b"12345"


def test_faults_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list_data(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no file system"):
        list_data("nonsense://bucket/x")
    with pytest.raises(UserError, match="matches no file"):
        list_data(str(tmp_path / "*.tar"))
    with pytest.raises(UserError, match="does not exist"):
        list_data(str(tmp_path / "x-{0..3}.tar"))
    if os.geteuid() != 0:
        tmp_path.chmod(0)
        with pytest.raises(UserError, match="cannot be listed"):
            list_data(str(tmp_path))
        tmp_path.chmod(0o700)
