"""Zip archives are folders, read in place."""

import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest

from raydapt.data.sources import read_part, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import png

DATA = DataSettings()
MEMBERS = {"set/train/oak/1.png": png(1), "set/train/elm/2.png": png(2), "set/test/elm/2.png": png(3)}


def write_zip(place: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return place


def write_on_windows(place: Path, members: dict[str, bytes], system: int = 0) -> Path:
    """As .NET before 4.6.1 and old archivers wrote: backslashes, which no ZIP has by its specification."""
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system = name.replace("/", "\\"), system
            archive.writestr(info, data)
    return place


def rows(address: str, rows_per_part: int = 2) -> list[tuple[object, ...]]:
    source = resolve_source(address, rows_per_part=rows_per_part)
    found = [row for part in source.parts for row in read_part(part, DATA).to_pylist()]
    return [(row["path"], row["label"], row["split"], row["image"], row["error"]) for row in found]


EXPECTED = [
    (name, name.split("/")[2], name.split("/")[1], MEMBERS[name], None)
    for name in ("set/test/elm/2.png", "set/train/elm/2.png", "set/train/oak/1.png")
]


def test_an_archive_is_read_as_its_folder_would_be(tmp_path: Path) -> None:
    rubbish = {"__MACOSX/set/train/oak/._1.png": b"x", "set/.DS_Store": b"x", "set/readme.txt": b"x"}
    place = write_zip(tmp_path / "x.zip", MEMBERS | rubbish)
    assert rows(str(place)) == EXPECTED
    assert rows(str(tmp_path)) == EXPECTED  # the only thing in its folder
    zipfile.ZipFile(place).extractall(tmp_path / "unpacked")
    shutil.rmtree(tmp_path / "unpacked/__MACOSX")
    assert rows(str(tmp_path / "unpacked")) == EXPECTED


@pytest.mark.parametrize("system", [0, 3, 10])
def test_an_archive_with_backslashes_is_its_folders(tmp_path: Path, system: int) -> None:
    outside = {"../oak/7.png": png(7), "set/../../elm/8.png": png(8), "__MACOSX/set/1.png": b"x"}
    place = write_on_windows(tmp_path / "x.zip", MEMBERS | outside, system)
    assert rows(str(place)) == EXPECTED
    assert rows(f"zip://set/train::{place}") == [
        (name, name.split("/")[0], None, MEMBERS[f"set/train/{name}"], None) for name in ("elm/2.png", "oak/1.png")
    ]


def test_backslashes_that_are_letters_of_names_stay(tmp_path: Path) -> None:
    members = {"AC\\DC/1.png": png(1), "oak/2.png": png(2)}
    assert [row[:2] for row in rows(str(write_zip(tmp_path / "x.zip", members)))] == [
        ("AC\\DC/1.png", "AC\\DC"), ("oak/2.png", "oak"),
    ]  # fmt: skip


def test_of_two_spellings_of_one_name_none_is_lost(tmp_path: Path) -> None:
    place = write_on_windows(tmp_path / "x.zip", {"oak/1.png": png(1), "elm/2.png": png(2)})
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr("oak/1.png", png(3))
    assert {row[3] for row in rows(str(place))} == {png(1), png(2), png(3)}


def test_an_archive_elsewhere(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.zip", MEMBERS)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/zips/x.zip", (tmp_path / "x.zip").read_bytes())
    assert rows("memory://zips/x.zip") == EXPECTED
    memory.rm("/zips", recursive=True)


def test_a_list_in_an_archive(tmp_path: Path) -> None:
    members = {"train.csv": b"id,label\n1,oak\n2,elm\n", "images/1.png": png(1), "images/2.png": png(2)}
    place = write_zip(tmp_path / "kaggle.zip", members)
    address = f"zip://train.csv::{place}"
    assert f"{address!r} beside the images was not read" in resolve_source(str(place), rows_per_part=9).notes[0]
    assert [row[:3] for row in rows(address)] == [("images/1.png", "oak", "train"), ("images/2.png", "elm", "train")]


def test_an_archive_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    before = resolve_source(str(write_zip(tmp_path / "x.zip", MEMBERS)), rows_per_part=9).identity
    write_zip(tmp_path / "x.zip", MEMBERS | {"set/test/elm/2.png": png(7), "set/test/oak/3.png": png(8)})
    assert resolve_source(str(tmp_path / "x.zip"), rows_per_part=9).identity != before
    assert [row[3] for row in rows(str(tmp_path / "x.zip"))][:2] == [png(7), png(8)]


def test_a_damaged_member_is_a_row_with_an_error(tmp_path: Path) -> None:
    place = write_zip(tmp_path / "x.zip", MEMBERS)
    data = bytearray(place.read_bytes())
    start = data.index(b"set/train/elm/2.png") + len("set/train/elm/2.png")
    data[start + 20 : start + 40] = bytes(20)
    place.write_bytes(bytes(data))
    assert [row[4] for row in rows(str(place))] == [None, "unreadable", None]


def test_faults_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="no zip archive that can be read"):
        rows(str(tmp_path / "x.zip"))
    write_zip(tmp_path / "x.zip", {"a.txt": b"x"})
    with pytest.raises(UserError, match="no images found"):
        rows(str(tmp_path / "x.zip"))
    data = bytearray(write_zip(tmp_path / "x.zip", MEMBERS).read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # say that every member is encrypted
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + flags] |= 1
    (tmp_path / "x.zip").write_bytes(bytes(data))
    with pytest.raises(UserError, match="encrypted"):
        rows(str(tmp_path / "x.zip"))
    write_zip(tmp_path / "x.zip", MEMBERS)
    write_zip(tmp_path / "y.zip", MEMBERS)
    with pytest.raises(UserError, match="holds 2 zip archives"):
        rows(str(tmp_path))
