import os
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data.decode import ImageSpec, decode_image
from raydapt.data.layouts import check_layout, label_and_split, layout_of
from raydapt.data.sources import read_label_names, read_part, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import encode, noise, png

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


SPLIT_TREES = {
    "split": ["trainval/1.png", "test/2.png"],
    "split/class": ["trainval/cat/1.png", "test/cat/2.png", "trainval/dog/1.png"],
    "split/*/class": ["seg_train/seg_train/cat/1.png", "seg_train/seg_train/dog/1.png", "seg_test/seg_test/cat/2.png",
                      "seg_pred/seg_pred/3.png"],
    "*/class": ["CUB/images/001.Auk/1.png", "CUB/images/002.Owl/1.png"],
    "*/split/class": ["set/train/cat/1.png", "set/val/cat/1.png"],
    "class": ["train/1.png", "bus/1.png", "test tube/2.png"],
    "class/split": ["cat/train/1.png", "cat/test/2.png", "dog/train/1.png"],
}  # fmt: skip


def test_splits_and_wrappers_are_no_classes() -> None:
    for wanted, names in SPLIT_TREES.items():
        got = layout_of(names)
        assert got == wanted if wanted != "*/class" else got == "*/*/class"
    intel = [label_and_split(name, "split/*/class") for name in SPLIT_TREES["split/*/class"]]
    assert intel == [("cat", "train"), ("dog", "train"), ("cat", "test"), (None, "pred")]
    assert label_and_split(SPLIT_TREES["*/class"][0], "*/*/class") == ("001.Auk", None)
    unlabelled = ["train/cat/1.png", "test/cat/1.png", "unlabeled/2.png", "train/dog/1.png"]
    assert layout_of(unlabelled) == "split/class"
    assert label_and_split("unlabeled/2.png", "split/class") == (None, "unlabeled")
    assert layout_of(["train/a/1.png", "test/a/1.png", "more/a/1.png"]) == "split/class"
    kaggle = ["train_images/cat/1.png", "test_images/cat/2.png"]
    assert [label_and_split(name, layout_of(kaggle)) for name in kaggle] == [("cat", "train"), ("cat", "test")]
    assert layout_of(["steam_train/1.png", "test_tube/1.png"]) == "class"
    assert layout_of(["cat/deep/1.png"]) == "class"


UNLABELLED_TREES = (
    ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "unlabeled/2.png"],
    ["labeled/cat/1.png", "labeled/dog/1.png", "unlabeled/1.png"],
)


@pytest.mark.parametrize("names", [*SPLIT_TREES.values(), *UNLABELLED_TREES])
def test_a_tree_is_planned_and_read_as_its_layout_says(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, names)
    source, layout = resolve_source(str(tmp_path), rows_per_part=9), layout_of(names)
    rows = read_part(source.parts[0], DATA).to_pylist()
    told = {row["path"]: (row["label"], row["split"]) for row in rows}
    assert told == {name: label_and_split(name, layout) for name in names}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [(("train", "test1"), ("train", "test")), (("training_set", "test_set"), ("training", "test")),
     (("labeled", "unlabeled"), ("labeled", "unlabeled")), (("Training Data", "Testing Data"), ("training", "testing")),
     (("train_a", "val2"), ("train", "val"))],
)  # fmt: skip
def test_splits_with_numbers_and_other_words(folders: tuple[str, str], splits: tuple[str, str]) -> None:
    names = [f"{folder}/{label}/1.png" for folder in folders for label in ("cat", "dog")]
    assert layout_of(names) == "split/class"
    assert [label_and_split(name, "split/class") for name in names[::2]] == [("cat", split) for split in splits]
    assert layout_of([f"{folder}/1.png" for folder in folders]) == "split"
    assert layout_of(["train1/1.png", "bus/1.png", "test tube/1.png"]) == "class"


def test_what_folders_are_taken_for_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a", [f"{site}/{label}/1.png" for site in ("sketch", "photo") for label in ("cat", "dog")])
    assert "'photo', 'sketch', and each of them holds the folders 'cat', 'dog'" in notes(tmp_path / "a")
    write(tmp_path / "b", ["train/cat/1.png", "train/dog/1.png", "test1/cat/1.png"])
    assert notes(tmp_path / "b") == "Splits: 'test1' as 'test'."
    write(tmp_path / "c", ["cat/train/1.png", "cat/test/1.png", "dog/train/1.png", "dog/test/1.png"])
    assert notes(tmp_path / "c") == "Folders are read as CLASS/SPLIT/."
    source = resolve_source(str(tmp_path / "c"), rows_per_part=9)
    assert source.splits == ("test", "train")
    assert {row["label"] for row in read_part(source.parts[0], DATA).to_pylist()} == {"cat", "dog"}
    write(tmp_path / "d", ["cat/leaf/1.png", "cat/bark/1.png", "dog/leaf/1.png", "dog/2.png"])
    assert notes(tmp_path / "d") == ""
    for n in (1, 3):
        write(tmp_path / f"e{n}", ["cat/1.png", "dog/1.png", *(f"stray{i}.png" for i in range(n))])
    assert "not taken for classes, as 'stray0.png' lies beside them" in notes(tmp_path / "e1")
    assert "not taken for classes, as 'stray0.png' and 2 more images lie beside them" in notes(tmp_path / "e3")


def notes(folder: Path) -> str:
    return " ".join(resolve_source(str(folder), rows_per_part=9).notes)


@pytest.mark.parametrize("junk", ["@eaDir", "@Recycle", "#snapshot", "@Recently-Snapshot"])
def test_folders_of_storage_boxes_are_no_classes(tmp_path: Path, junk: str) -> None:
    write(tmp_path, ["cat/1.png", "dog/1.png", f"{junk}/1.png", f"cat/{junk}/1.png"])
    source = resolve_source(str(tmp_path), rows_per_part=9)
    assert (source.rows, source.label_names) == (2, ("cat", "dog"))


def test_a_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path: Path) -> None:
    names = ["train/cat/1.png", "train/dog/1.png", "more/1.png"]
    write(tmp_path, names)
    with pytest.raises(UserError, match="whether 'train' is a split or a class"):
        resolve_source(str(tmp_path), rows_per_part=10)
    check_layout(["train/steam/1.png", "train/diesel/1.png", "bus/red/1.png"], "class")


@pytest.mark.parametrize(
    "suffix", ["jfif", "jpe", "JPG", "mpo", "ppm", "pgm", "pbm", "avif", "jp2", "j2k", "dib", "apng"]
)
def test_every_suffix_that_pillow_can_read(tmp_path: Path, suffix: str) -> None:
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "mpo": "JPEG", "ppm": "PPM", "pgm": "PPM", "pbm": "PPM",
             "avif": "AVIF", "jp2": "JPEG2000", "j2k": "JPEG2000", "dib": "BMP", "apng": "PNG"}  # fmt: skip
    mode = {"pgm": "L", "pbm": "1"}.get(suffix, "RGB")
    data = encode(noise(16, 16, mode="L").convert(mode), kinds[suffix])
    (tmp_path / f"a.{suffix}").write_bytes(data)
    source = resolve_source(str(tmp_path), rows_per_part=10)
    row = read_part(source.parts[0], DataSettings()).to_pylist()[0]
    assert decode_image(row["image"], ImageSpec(size_px=8), max_pixels=10**6, max_bytes=10**6).shape == (3, 8, 8)


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    write(tmp_path, ["a/1.png", "b/1.png"])
    for name in ("a/2.cr2", "a/3.CR2", "b/4.psd", "b/IMG_0001", "README", "b/notes.txt", "Thumbs.db", "b/.hidden.cr2"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b" / "@eaDir").mkdir()
    (tmp_path / "b" / "@eaDir" / "thumb.png").write_bytes(png(1))
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert source.rows == 2
    assert source.label_names == ("a", "b")
    assert source.notes == ("4 files were left out, as no images that can be read here: 2 .cr2, 1 .psd, 1 no suffix.",)
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "1.psd").write_bytes(b"x")
    with pytest.raises(UserError, match=r"1 file was left out.*1 \.psd"):
        resolve_source(str(tmp_path), rows_per_part=10)


def test_own_runs_and_artefacts_are_no_images(tmp_path: Path) -> None:
    write(tmp_path, ["cat/1.png", "dog/1.png", "runs/mine/gallery.png", "store/features/0123456789abcdef/1.png"])
    run, artefact = tmp_path / "runs" / "mine", tmp_path / "store" / "features" / "0123456789abcdef"
    for name in ("config.yaml", "fingerprint.json"):
        (run / name).write_text("{}")
    for path in (run / "gallery.parquet", run / "predictions.parquet", artefact / "part-00000.parquet"):
        pq.write_table(pa.table({"image": [png(0)]}), path)
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert [name for part in source.parts for name in part.uris] == ["cat/1.png", "dog/1.png"]
    assert resolve_source(str(artefact), rows_per_part=10).kind == "parquet"


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
