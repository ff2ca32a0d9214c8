import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pytest

from raydapt.data.classes import resolve_classes
from raydapt.data.sources import Source, read_label_names, read_parts, read_row_labels, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import png

DATA = DataSettings(max_image_bytes=1000)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def samples(n: int, first: int = 0) -> dict[str, bytes]:
    members = {}
    for i in range(first, first + n):
        members[f"s{i:04d}.png"] = png(i)
        members[f"s{i:04d}.cls"] = str(i % 3).encode()
    return members


def rows_of(source: Source) -> list[dict[str, object]]:
    return [row for _, table in read_parts(source.parts, DATA) for row in table.to_pylist()]


@pytest.mark.parametrize("rows_per_part", [1, 4, 100])
@pytest.mark.parametrize("limit", [None, 3, 12])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_every_sample_once(tmp_path: Path, rows_per_part: int, limit: int | None, suffix: str) -> None:
    mode = "w:gz" if suffix.endswith("gz") else "w"
    write_tar(tmp_path / f"train-0.{suffix}", samples(9), mode)
    write_tar(tmp_path / f"test-1.{suffix}", samples(6, 9), mode)
    source = resolve_source(str(tmp_path), rows_per_part=rows_per_part, limit=limit)
    rows = rows_of(source)
    order = [*range(9, 15), *range(9)][:limit]
    assert [row["image"] for row in rows] == [png(i) for i in order]
    assert [row["label"] for row in rows] == [str(i % 3) for i in order]
    assert [row["split"] for row in rows] == ["test" if i >= 9 else "train" for i in order]
    assert len({row["row"] for row in rows}) == len(rows)
    if suffix == "tar" or limit:
        assert source.rows == len(rows)
        assert [row["row"] for row in rows] == list(range(len(rows)))
    else:
        assert source.rows is None
    assert read_label_names(source) == ("0", "1", "2")


def test_where_labels_come_from(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {
        "a.png": png(0), "a.txt": b"a caption", "a.cls": b"cat\n",
        "b.json": json.dumps({"label": 3, "split": "test"}).encode(), "b.png": png(1), "b.txt": b"dog",
        "c.png": png(2), "c.txt": b"dog",
        "d.png": png(3), "d.json": b"{broken", "d.txt": b"two\nlines",
        "e.png": png(4), "e.json": b"[" * 100_000,
        "f.cls": b"no image", "g.mask.png": png(5), "g.png": png(6), "g.cls": b"  ",
        "dir/with.dot/h.png": png(7), "dir/with.dot/h.cls": b"fox",
        "__keys__.png": png(8), "noextension": b"x", ".hidden.png": png(9),
    })  # fmt: skip
    rows = rows_of(resolve_source(str(tmp_path / "x.tar"), rows_per_part=3))
    assert [(row["label"], row["split"]) for row in rows] == [
        ("cat", None), ("3", "test"), ("dog", None), (None, None), (None, None), (None, None), ("fox", None)
    ]  # fmt: skip
    assert rows[5]["image"] == png(6)
    assert rows[6]["path"] == "x.tar/dir/with.dot/h.png"


def test_links_and_large_members_are_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        for name, data in (("../b.png", png(1)), ("c.png", b"1" * 2000), ("d.png", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = rows_of(resolve_source(str(tmp_path), rows_per_part=10))
    assert [row["error"] for row in rows] == [None, "too_many_bytes", "empty"]


@pytest.mark.parametrize("suffix", ["tar", "tgz"])
def test_a_broken_archive_is_read_as_far_as_it_goes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    write_tar(path, samples(20), "w:gz" if suffix == "tgz" else "w")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = resolve_source(str(path), rows_per_part=4)
    rows = rows_of(source)
    good = [row for row in rows if row["error"] is None]
    assert [row["image"] for row in good] == [png(i) for i in range(len(good))]
    assert 5 < len(good) < 20
    if suffix == "tar":
        path.write_bytes(data[: len(data) // 4])
        assert len(rows_of(source)) == len(rows)
    else:
        assert rows[-1]["error"] == "unreadable"


def test_patterns_and_other_file_systems(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for i in range(3):
        write_tar(tmp_path / f"x-{i}.tar", samples(2, 2 * i))
        memory.pipe(f"/tars/x-{i}.tar", (tmp_path / f"x-{i}.tar").read_bytes())
    for address in (f"{tmp_path}/x-{{1..2}}.tar", "memory://tars/x-{1..2}.tar"):
        assert [row["image"] for row in rows_of(resolve_source(address, rows_per_part=10))] == [
            png(i) for i in range(2, 6)
        ]
    assert len(rows_of(resolve_source(f"{tmp_path}/*.tar", rows_per_part=10))) == 6
    memory.rm("/tars", recursive=True)


def test_faults_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(UserError, match="no tar archive"):
        resolve_source(str(tmp_path), rows_per_part=10)
    write_tar(tmp_path / "x.tar", {"a.cls": b"1", "b.mp4": b"2"})
    with pytest.raises(UserError, match="hold no images"):
        resolve_source(str(tmp_path), rows_per_part=10)


def test_what_webdataset_writes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for i in range(5):
            writer.write({"__key__": f"{i:05d}", "png": png(i), "cls": i % 2, "json": {"label": 9}})
    rows = rows_of(resolve_source(str(tmp_path), rows_per_part=2))
    assert [row["image"] for row in rows] == [png(i) for i in range(5)]
    assert [row["label"] for row in rows] == ["0", "1", "0", "1", "0"]


DOTTED = {
    "days": ["22.05.png", "22.06.png", "23.01.png"],
    "versions": ["IMG_1.2.JPG", "IMG_1.3.JPG", "IMG_1.JPG"],
    "words": ["my.cat.png", "my.dog.png", "a.b.c.png"],
    "folders": ["x.y/1.0.png", "x.y/1.1.png"],
    "views": ["s.0.png", "s.1.png"],
}


@pytest.mark.parametrize("names", DOTTED.values(), ids=DOTTED)
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("rows_per_part", [1, 2, 9])
def test_names_with_several_dots_are_images(tmp_path: Path, names: list[str], suffix: str, rows_per_part: int) -> None:
    members = {name: png(i) for i, name in enumerate(names)}
    write_tar(tmp_path / f"x.{suffix}", members, "w:gz" if suffix.endswith("gz") else "w")
    rows = rows_of(resolve_source(str(tmp_path), rows_per_part=rows_per_part))
    assert [row["image"] for row in rows] == list(members.values())
    assert [row["path"] for row in rows] == [f"x.{suffix}/{name}" for name in names]


@pytest.mark.parametrize("rows_per_part", [1, 2, 9])
def test_labels_of_names_with_several_dots(tmp_path: Path, rows_per_part: int) -> None:
    write_tar(tmp_path / "x.tar", {
        "s.cls": b"cat", "s.0.png": png(0), "s.1.png": png(1), "22.05.cls": b"dog", "22.05.png": png(2),
        "22.06.png": png(3), "g.png": png(4), "g.mask.png": png(5), "g.cls": b"fox",
        "t.input.png": png(6), "t.cls": b"owl",
    })  # fmt: skip
    source = resolve_source(str(tmp_path), rows_per_part=rows_per_part)
    rows = rows_of(source)
    assert [row["label"] for row in rows] == ["cat", "cat", "dog", None, "fox", "owl"]
    assert [row["image"] for row in rows] == [png(i) for i in (0, 1, 2, 3, 4, 6)]
    assert dict(source.label_counts or ()) == {"cat": 2, "dog": 1, "fox": 1, "owl": 1}


def test_many_images_with_one_key_are_cut_into_parts(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {f"v1.{i:04d}.png": png(i) for i in range(200)})
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert [part.rows for part in source.parts] == [10] * 20
    assert [row["image"] for row in rows_of(source)] == [png(i) for i in range(200)]


def test_captions_are_no_labels_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(3):
        members[f"{i}.png"] = png(i)
        members[f"{i}.txt"] = f"a photo of {i}".encode()
        members[f"{i}.json"] = json.dumps({"caption": f"a photo of {i}", "url": "x"}).encode()
        members[f"{i}x.psd"] = b"?"
    write_tar(tmp_path / "00000.tar", members)
    source = resolve_source(str(tmp_path), rows_per_part=2)
    assert [row["label"] for row in rows_of(source)] == [None] * 3
    assert not source.has_labels
    assert "3 .psd" in source.notes[0]


def test_texts_beside_captions_are_no_labels(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(3):
        members |= {f"{i}.png": png(i), f"{i}.txt": b"a cat", f"{i}.json": json.dumps({"caption": "a photo"}).encode()}
    write_tar(tmp_path / "x.tar", members)
    assert not resolve_source(str(tmp_path), rows_per_part=2).has_labels


def test_captions_are_no_class_names(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(8):
        members |= {f"{i}.png": png(i), f"{i}.txt": f"a grey cat on mat {i % 5}".encode()}
    write_tar(tmp_path / "x.tar", members)
    source = resolve_source(str(tmp_path), rows_per_part=8)
    with pytest.raises(
        UserError, match=r"5 different labels, such as 'a grey cat.*look like captions: set data\.class_names"
    ):
        resolve_classes(DataSettings(source=str(tmp_path)), source)
    assert len(resolve_classes(DataSettings(source=str(tmp_path), class_names=["cat", "dog"]), source).names) == 2


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("of_json", [False, True])
def test_a_label_corrected_in_place_is_noticed_and_the_images_are_not(
    tmp_path: Path, limit: int | None, of_json: bool
) -> None:
    """The archive has the size and the time stamp that it had."""
    path, sources = tmp_path / "train-x.tar", []
    for label in ("cat", "dog", "cat"):
        members = samples(5) | {"s0001.cls": label.encode()}
        if of_json:
            del members["s0001.cls"]
            members = {**members, "s0001.json": json.dumps({"label": label, "split": "test"}).encode()}
            members = dict(sorted(members.items()))
        write_tar(path, members)
        os.utime(path, ns=(1, 1))
        sources.append(resolve_source(str(path), rows_per_part=2, limit=limit))
    before, after, again = sources
    assert before == again
    assert before.identity == after.identity
    assert before.label_identity != after.label_identity
    rows = rows_of(before)
    for _ in range(2):  # as they were planned, and read anew where another source was planned since
        fresh = read_row_labels(before)
        assert fresh is not None
        assert list(fresh.labels) == [row["label"] for row in rows] == ["0", "cat", "2", "0", "1"][:limit]
        assert list(fresh.splits) == [row["split"] for row in rows]
        write_tar(tmp_path / "other.tar", samples(2))
        resolve_source(str(tmp_path / "other.tar"), rows_per_part=2)
    with pytest.raises(UserError, match="changed while it was read"):
        read_row_labels(after)


def test_archives_that_would_be_read_as_a_whole_keep_the_labels_that_were_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tgz", samples(3), "w:gz")
    write_tar(tmp_path / "y.tar", {name: data for name, data in samples(3).items() if name.endswith("png")})
    for name in ("x.tgz", "y.tar"):
        source = resolve_source(str(tmp_path / name), rows_per_part=2)
        assert (source.label_identity, read_row_labels(source)) == ("", None)


def test_labels_in_json_by_their_usual_names(tmp_path: Path) -> None:
    told = [{"class": "dog"}, {"label": 0, "label_name": "cat"}, {"class_id": 2}, {"category": ["a", "b"]}]
    members = {f"{i}.{kind}": data for i, label in enumerate(told)
               for kind, data in (("png", png(i)), ("json", json.dumps(label).encode()))}  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    rows = rows_of(resolve_source(str(tmp_path / "a.tar"), rows_per_part=10))
    assert [row["label"] for row in rows] == ["dog", "0", "2", None]
