import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data.decode import image_id
from raydapt.data.sources import (
    ROW_SCHEMA,
    Source,
    group_parts,
    read_label_names,
    read_part,
    read_parts,
    resolve_source,
)
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import png

DATA = DataSettings(max_image_bytes=100_000)


def read_all(source: Source) -> pa.Table:
    return pa.concat_tables(table for _, table in read_parts(source.parts, DATA))


def parquet(path: Path, n: int, **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(i) for i in range(n)], **columns}), path, row_group_size=7)


@pytest.mark.parametrize("limit", [None, 1, 500, 1797, 5000])
def test_digits(limit: int | None) -> None:
    source = resolve_source("digits", rows_per_part=400, limit=limit)
    table = read_all(source)
    assert table.schema == ROW_SCHEMA
    assert table.num_rows == source.rows == min(limit or 1797, 1797)
    assert table["row"].to_pylist() == list(range(table.num_rows))
    assert source.label_names == tuple("0123456789")
    assert source.identity == resolve_source("digits", rows_per_part=400, limit=limit).identity


def test_digits_are_divided_alike_in_every_class() -> None:
    rows = read_all(resolve_source("digits", rows_per_part=4096)).to_pylist()
    for c in "0123456789":
        splits = [row["split"] for row in rows if row["label"] == c]
        assert abs(splits.count("test") / len(splits) - 0.3) < 0.01
    assert all(row["error"] is None and row["id"] == image_id(row["image"]) for row in rows)


def test_named_sets_are_looked_up_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDAPT_DATA", str(tmp_path))
    parquet(tmp_path / "eurosat.parquet", 3, label=["Forest", "River", "Forest"])
    (tmp_path / "dtd" / "banded").mkdir(parents=True)
    (tmp_path / "dtd" / "banded" / "1.png").write_bytes(png(1))
    assert resolve_source("eurosat", rows_per_part=2).rows == 3
    assert resolve_source("DTD", rows_per_part=2).label_names == ("banded",)
    for folder in (str(tmp_path), ""):
        monkeypatch.setenv("RAYDAPT_DATA", folder)
        with pytest.raises(UserError, match=r"pacs_cartoon\.parquet"):
            resolve_source("pacs_cartoon", rows_per_part=2)


def test_a_named_set_that_is_not_here_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYDAPT_DATA", raising=False)
    asked = []

    def offline(address: str) -> None:
        asked.append(address)
        raise UserError("no network")

    monkeypatch.setattr("raydapt.data.hub.list_data", offline)
    with pytest.raises(UserError, match="hub"):
        resolve_source("cifar10", rows_per_part=2)
    assert asked[0] == "hf://datasets/uoft-cs/cifar10"


FAULTS = {
    "eurosatt": "did you mean 'eurosat'",
    "": "empty",
    "/no/such/folder": "does not exist",
    "photos.parquet": "does not exist",
    "nonsense://y": "no file system",
    "hf://org/name": "hf://datasets/ORGANISATION/NAME",
    "/no/{0..2}.tar": "does not exist",
}


@pytest.mark.parametrize(("source", "words"), FAULTS.items())
def test_faults_are_sentences(source: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        resolve_source(source, rows_per_part=10)
    assert "\n" not in str(caught.value)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images found"):
        resolve_source(str(tmp_path), rows_per_part=10)
    (tmp_path / "readme.md").write_text("no image")
    for place in (tmp_path, tmp_path / "readme.md"):
        with pytest.raises(UserError, match="no images found"):
            resolve_source(str(place), rows_per_part=10)


def test_a_single_image_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(3))
    table = read_all(resolve_source(str(tmp_path / "one.png"), rows_per_part=10))
    assert table.to_pylist()[0] == {"row": 0, "id": image_id(png(3)), "image": png(3), "label": None, "split": None,
                                    "path": "one.png", "error": None}  # fmt: skip


def test_identity_changes_with_content_and_with_the_cut(tmp_path: Path) -> None:
    def identity(**options: int) -> str:
        return resolve_source(str(tmp_path / "x.parquet"), **{"rows_per_part": 5, **options}).identity

    parquet(tmp_path / "x.parquet", 9)
    first = identity()
    assert first == identity()
    assert len({first, identity(limit=4), identity(limit=5), identity(rows_per_part=6)}) == 4
    pq.write_table(
        pa.table({"image": [png(i) for i in (0, 1, 2, 3, 4, 5, 6, 7, 9)]}), tmp_path / "x.parquet", row_group_size=7
    )
    assert identity() != first


def test_parts_are_read_alone_as_together(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", 30)
    source = resolve_source(str(tmp_path), rows_per_part=4)
    together = dict(read_parts(source.parts, DATA))
    assert [part.index for part in source.parts] == list(range(len(source.parts)))
    assert all(together[part].equals(read_part(part, DATA)) for part in source.parts)
    groups = group_parts(source.parts)
    assert [part for group in groups for part in group] == list(source.parts)
    assert len(groups) == 5


def test_label_names_are_found_by_reading_where_planning_did_not_tell(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", 5, label=["b", "a", None, "b", "c"])
    source = resolve_source(str(tmp_path), rows_per_part=4)
    assert source.label_names == ()
    assert source.has_labels
    assert read_label_names(source) == ("a", "b", "c")
    parquet(tmp_path / "x.parquet", 5, label=[10, 9, 2, -1, None])
    assert read_label_names(resolve_source(str(tmp_path), rows_per_part=4)) == ("2", "9", "10")
    parquet(tmp_path / "x.parquet", 5)
    assert read_label_names(resolve_source(str(tmp_path), rows_per_part=4)) == ()


@pytest.mark.parametrize(("name", "rows", "classes"), [("eurosat", 27_000, 10), ("pacs_cartoon", 2_344, 7)])
def test_the_real_sets(name: str, rows: int, classes: int, data_folder: Path) -> None:
    source = resolve_source(name, rows_per_part=512)
    assert source.rows == rows
    assert all((part.rows or 0) <= 512 for part in source.parts)
    assert len(read_label_names(source)) == classes
    table = read_part(source.parts[-1], DATA)
    assert table["error"].null_count == table.num_rows


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            data = png(i) if name.endswith("png") else b"words of a caption"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_table_without_images_hides_neither_tars_nor_files(tmp_path: Path) -> None:
    table = pa.table({"url": ["x"], "caption": ["y"], "status": ["success"]})
    for folder in ("tars", "files", "alone"):
        (tmp_path / folder).mkdir()
        pq.write_table(table, tmp_path / folder / "00000.parquet")
    write_tar(tmp_path / "tars" / "00000.tar", ["a.png", "a.txt"])
    (tmp_path / "files" / "a.png").write_bytes(png(1))
    for folder, kind in (("tars", "tar"), ("files", "files")):
        source = resolve_source(str(tmp_path / folder), rows_per_part=10)
        assert source.kind == kind
        assert "1 table without images" in source.notes[0]
    with pytest.raises(UserError, match="must be called 'image'"):
        resolve_source(str(tmp_path / "alone"), rows_per_part=10)
    parquet(tmp_path / "alone" / "images.parquet", 2)
    mixed = resolve_source(str(tmp_path / "alone"), rows_per_part=10)
    assert mixed.rows == 2
    assert "url, caption, status" in mixed.notes[0]


def test_class_folders_come_before_what_they_were_unpacked_from(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    write_tar(tmp_path / "dataset.tar", ["1.png", "2.png"])
    parquet(tmp_path / "few.parquet", 2, label=["x", "y"])
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert (source.kind, source.rows) == ("files", 3)
    assert [note.split(" beside")[0] for note in source.notes] == ["1 table", "1 archive"]
    paths = [f"{name}.png" for name in ("cat/1", "cat/2")]
    pq.write_table(pa.table({"image": paths, "label": ["a", "b"]}), tmp_path / "few.parquet")
    named = resolve_source(str(tmp_path), rows_per_part=10)
    assert (named.kind, named.rows) == ("parquet", 2)
    (tmp_path / "preview.png").write_bytes(png(1))
    (tmp_path / "few.parquet").unlink()
    assert resolve_source(str(tmp_path), rows_per_part=10).kind == "tar"


def test_a_column_of_labels_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", 2, label=[[1], [0]])
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert "'label' (list<element: int64>) holds no labels that can be read" in source.notes[0]
