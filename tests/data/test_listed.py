"""CSV, TSV and JSON lines that name images: Kaggle's layouts, Hugging Face's metadata, and names that are not clear."""

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data.classes import resolve_classes
from raydapt.data.parts import Source
from raydapt.data.sources import read_label_names, read_part, read_row_labels, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import png

DATA = DataSettings()


def images(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return folder


def table(file: Path, rows: list[list[object]], separator: str = ",") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as sink:
        csv.writer(sink, delimiter=separator).writerows(rows)
    return file


def rows_of(source: Source) -> list[dict[str, object]]:
    return [row for part in source.parts for row in read_part(part, DATA).to_pylist()]


def told(place: Path, **how: int) -> list[tuple[object, object, object]]:
    source = resolve_source(str(place), rows_per_part=how.get("rows_per_part", 2), limit=how.get("limit"))
    rows = rows_of(source)
    assert [row["row"] for row in rows] == list(range(len(rows)))
    fresh = read_row_labels(source)
    assert fresh is not None
    assert list(fresh.labels) == [row["label"] for row in rows]
    assert list(fresh.splits) == [row["split"] for row in rows]
    return [(row["path"], row["label"], row["split"]) for row in rows]


def test_paths_and_labels_in_any_dialect(tmp_path: Path) -> None:
    images(tmp_path, "img/a.png", "img/b.png", "img/c d.png")
    rows = [["path", "label"], ["img/a.png", "oak"], ["img/b.png", "C++, or so"], ["img/c d.png", ""]]
    expected = [("img/a.png", "oak", None), ("img/b.png", "C++, or so", None), ("img/c d.png", None, None)]
    for name, separator in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t"), ("d.csv", "|")):
        assert told(table(tmp_path / name, rows, separator)) == expected
    written = (tmp_path / "b.csv").read_text()
    for ends in ("\n", "\r\n", "\r"):  # Excel's first line, and ends of lines of all systems
        (tmp_path / "f.csv").write_bytes(f"sep=;\n{written}".replace("\n", ends).encode("utf-8-sig"))
        assert told(tmp_path / "f.csv") == expected
        (tmp_path / "f.csv").unlink()
    lines = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8-sig")
    assert told(tmp_path / "e.jsonl") == expected
    assert told(tmp_path / "e.jsonl", limit=1) == expected[:1]
    lines[0] |= {"label": ["oak"]}
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert told(tmp_path / "g.jsonl") == expected


@pytest.mark.parametrize(("header", "label"), [
    (["image_id", "label"], "3"), (["id", "breed"], "oak"), (["Image Name", "Class Name"], "oak"),
    (["width", "Path", "ClassId"], "3"), (["lesion", "image_id", "dx", "age"], "nv"), (["x", "y", "file_name"], "1"),
])  # fmt: skip
def test_headers_of_well_known_sets(tmp_path: Path, header: list[str], label: str) -> None:
    images(tmp_path, "pictures/n1.png", "pictures/n2.png")
    paths = {"image_id", "id", "Image Name", "Path", "file_name"}
    labels = {"label", "breed", "Class Name", "ClassId", "dx", "y"}
    rows = [[f"n{i}" if name in paths else label if name in labels else 7 for name in header] for i in (1, 2)]
    found = told(table(tmp_path / "train.csv", [header, *rows]))
    assert found == [("pictures/n1.png", label, "train"), ("pictures/n2.png", label, "train")]


def test_a_list_without_a_header(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    assert told(table(tmp_path / "l.csv", [["a.png", "oak"], ["b.png", "elm"]])) == [
        ("a.png", "oak", None), ("b.png", "elm", None)]  # fmt: skip
    with pytest.raises(UserError, match="'path' and 'label'"):
        told(table(tmp_path / "l.csv", [["a.png", "oak", "x"], ["b.png", "elm", "y"]]))


def test_paths_of_another_machine_and_of_windows(tmp_path: Path) -> None:
    images(tmp_path, "cats/1.png", "dogs/1.png")
    rows = [["path", "label"], ["/mnt/joe/data/cats/1.png", "cat"], ["dogs\\1.png", "dog"]]
    assert told(table(tmp_path / "l.csv", rows)) == [("cats/1.png", "cat", None), ("dogs/1.png", "dog", None)]


def test_images_elsewhere_on_this_machine(tmp_path: Path) -> None:
    images(tmp_path / "pool", "1.png", "2.png")
    rows = [["path", "label"], [str(tmp_path / "pool/1.png"), "oak"], ["../pool/2.png", "elm"]]
    place = table(tmp_path / "lists/l.csv", rows)
    assert [row["error"] for row in rows_of(resolve_source(str(place), rows_per_part=9))] == [None, None]
    before = resolve_source(str(place), rows_per_part=9).identity
    (tmp_path / "pool/1.png").write_bytes(png(9))
    os.utime(tmp_path / "pool/1.png", ns=(1, 1))
    assert resolve_source(str(place), rows_per_part=9).identity != before


def test_a_name_of_several_images_is_its_split_or_refused(tmp_path: Path) -> None:
    images(tmp_path, "train/1.png", "test/1.png")
    assert told(table(tmp_path / "train.csv", [["id", "label"], ["1", "oak"]])) == [("train/1.png", "oak", "train")]
    with pytest.raises(UserError, match=r"'test/1\.png' or 'train/1\.png'"):
        told(table(tmp_path / "labels.csv", [["id", "label"], ["1", "oak"]]))


def test_a_wrong_folder_is_no_match(tmp_path: Path) -> None:
    images(tmp_path, "dogs/1.png", "dogs/2.png")
    source = resolve_source(
        str(table(tmp_path / "l.csv", [["path", "label"], ["cats/1.png", "cat"], ["2.png", "dog"]])), rows_per_part=9
    )
    assert [(row["label"], row["error"]) for row in rows_of(source)] == [("cat", "unreadable"), ("dog", None)]
    assert "1 row names no image that is there, such as 'cats/1.png'" in " ".join(source.notes)
    assert "1 image is there that no row of the list names" in " ".join(source.notes)


def test_corrected_labels_count_and_images_stay(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    rows = [["path", "label"], ["a.png", "oak"], ["b.png", "elm"]]
    before = resolve_source(str(table(tmp_path / "l.csv", rows)), rows_per_part=9)
    after = resolve_source(str(table(tmp_path / "l.csv", [*rows[:2], ["b.png", "oak"]])), rows_per_part=9)
    assert (before.identity, before.label_counts) == (after.identity, (("elm", 1), ("oak", 1)))
    assert before.label_identity != after.label_identity
    assert after.label_counts == (("oak", 2),)


def test_rows_for_objects_are_one_image_unless_they_disagree(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    rows = [["path", "label"], ["a.png", "oak"], ["a.png", "oak"], ["b.png", "elm"]]
    assert len(told(table(tmp_path / "l.csv", rows))) == 2
    with pytest.raises(UserError, match=r"names 'a\.png' twice, as 'oak' and as 'elm'"):
        told(table(tmp_path / "l.csv", [*rows, ["a.png", "elm"]]))


def test_what_a_list_does_not_say_is_told_by_folders(tmp_path: Path) -> None:
    images(tmp_path, "train/oak/1.png", "train/elm/2.png", "test/oak/3.png", "test/elm/4.png")
    names = ["train/oak/1.png", "train/elm/2.png", "test/oak/3.png"]
    found = told(table(tmp_path / "l.csv", [["path"], *([name] for name in names)]))
    assert [row[1:] for row in found] == [("oak", "train"), ("elm", "train"), ("oak", "test")]
    rows = [["path", "label", "split"], *([name, "x", "Validation"] for name in names)]
    assert {row[1:] for row in told(table(tmp_path / "l.csv", rows))} == {("x", "validation")}


@pytest.mark.parametrize(("rows", "words"), [
    ([["path", "label"], ["gone.png", "oak"]], r"names no image that is there, such as 'gone\.png'"),
    ([["url", "caption"], ["https://x.org/1.jpg", "a cat"]], "img2dataset"),
    ([["a", "b"], ["1", "2"]], "call the one with the image files 'path'"),
    ([["path", "label"], ["a.png"]], "a row has 1 cells"),
    ([], "it is empty"),
    ([["path", "label"]], "has no rows"),
])  # fmt: skip
def test_faults_are_sentences(tmp_path: Path, rows: list[list[object]], words: str) -> None:
    images(tmp_path, "a.png")
    with pytest.raises(UserError, match=words) as caught:
        told(table(tmp_path / "l.csv", rows))
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "l.csv").write_bytes("path,label\na.png,café\n".encode("latin-1"))
    with pytest.raises(UserError, match="save it as UTF-8"):
        told(tmp_path / "l.csv")


def test_labels_of_no_known_name_are_told(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    place = table(tmp_path / "l.csv", [["path", "tree", "age"], ["a.png", "oak", 3], ["b.png", "elm", 4]])
    assert told(place) == [("a.png", None, None), ("b.png", None, None)]
    assert "call it 'label'" in " ".join(resolve_source(str(place), rows_per_part=9).notes)


def test_a_list_beside_images_is_named(tmp_path: Path) -> None:
    images(tmp_path, "images/a.png", "images/b.png")
    table(tmp_path / "train.csv", [["path", "label"], ["images/a.png", "oak"], ["images/b.png", "elm"]])
    source = resolve_source(str(tmp_path), rows_per_part=9)
    assert "'train.csv' beside the images was not read" in " ".join(source.notes)
    with pytest.raises(UserError, match=r"train\.csv"):
        resolve_classes(DataSettings(source=str(tmp_path)), source)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_of_imagefolder(tmp_path: Path, kind: str) -> None:
    images(tmp_path, "train/1.png", "train/2.png", "train/3.png", "test/1.png")
    for split, rows in {"train": [("1.png", "oak"), ("2.png", "elm")], "test": [("1.png", "elm")]}.items():
        file = tmp_path / split / f"metadata.{kind}"
        names, labels = (list(column) for column in zip(*rows, strict=True))
        if kind == "csv":
            table(file, [["file_name", "label"], *map(list, rows)])
        elif kind == "jsonl":
            file.write_text("".join(json.dumps({"file_name": n, "label": c}) + "\n" for n, c in rows))
        else:
            pq.write_table(pa.table({"file_name": names, "label": labels}), file)
    assert sorted(told(tmp_path)) == [
        ("test/1.png", "elm", "test"), ("train/1.png", "oak", "train"), ("train/2.png", "elm", "train"),
        ("train/3.png", None, "train")]  # fmt: skip
    source = resolve_source(str(tmp_path), rows_per_part=9)
    assert read_label_names(source) == ("elm", "oak")
    assert "1 images are in no row" in " ".join(source.notes)


def test_metadata_of_captions_leaves_labels_to_folders(tmp_path: Path) -> None:
    images(tmp_path, "oak/1.png", "elm/2.png")
    rows = [["file_name", "text", "width"], ["oak/1.png", "a tree", 8], ["elm/2.png", "another", 8]]
    table(tmp_path / "metadata.csv", rows)
    assert [row[1] for row in told(tmp_path)] == ["elm", "oak"]


def test_shards_of_img2dataset_are_no_classes(tmp_path: Path) -> None:
    for shard in ("00000", "00001"):
        images(tmp_path, f"{shard}/000000000.png", f"{shard}/000000001.png")
        (tmp_path / shard / "000000000.txt").write_text("a cat")
        pq.write_table(pa.table({"url": ["x"], "caption": ["a cat"], "key": ["1"]}), tmp_path / f"{shard}.parquet")
        (tmp_path / f"{shard}_stats.json").write_text("{}")
    assert [row[1:] for row in told(tmp_path)] == [(None, None)] * 4
    source = resolve_source(str(tmp_path), rows_per_part=9)
    assert (source.label_names, source.has_labels) == ((), False)
    assert "img2dataset's shards" in " ".join(source.notes)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_that_is_only_called_metadata_hides_no_folders(tmp_path: Path, kind: str) -> None:
    images(tmp_path, "cat/1.png", "dog/1.png")
    if kind == "csv":
        table(tmp_path / "metadata.csv", [["width", "height"], [1, 2]])
    else:
        pq.write_table(pa.table({"width": [1]}), tmp_path / "metadata.parquet")
    assert resolve_source(str(tmp_path), rows_per_part=2).label_names == ("cat", "dog")
