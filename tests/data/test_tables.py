import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data.sources import read_label_names, read_part, read_parts, read_row_labels, resolve_source
from raydapt.data.tables import _cut
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import png

DATA = DataSettings(max_image_bytes=1000)
FEATURES = {"info": {"features": {"img": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}


def rows_of(path: Path | str, rows_per_part: int = 4, limit: int | None = None) -> list[dict[str, object]]:
    source = resolve_source(str(path), rows_per_part=rows_per_part, limit=limit)
    rows = [row for _, table in read_parts(source.parts, DATA) for row in table.to_pylist()]
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert len(rows) == source.rows
    return rows


def test_cutting_conserves_rows_and_spares_row_groups() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        group_rows = generator.integers(0, 30, generator.integers(1, 12)).tolist()
        rows_per_part = int(generator.integers(1, 20))
        owner = [g for g, rows in enumerate(group_rows) for _ in range(rows)]
        position = 0
        for start, stop, (first, last) in _cut(group_rows, rows_per_part):
            assert start == position < stop <= start + rows_per_part
            assert {owner[start], owner[stop - 1]} <= set(range(first, last))
            whole = owner[start:stop] == [g for g in owner if first <= g < last]
            assert whole or sum(group_rows[g] > 0 for g in range(first, last)) == 1
            position = stop
        assert position == sum(group_rows)


@pytest.mark.parametrize("group", [1, 3, 7, 50])
@pytest.mark.parametrize("rows_per_part", [1, 4, 100])
@pytest.mark.parametrize("limit", [None, 5, 60])
def test_every_row_once(tmp_path: Path, group: int, rows_per_part: int, limit: int | None) -> None:
    labels = [f"class {i % 3}" for i in range(40)]
    splits = ["train", "test"] * 20
    for k, part in enumerate((slice(0, 25), slice(25, 40))):
        table = pa.table({"image": [png(i) for i in range(40)][part], "label": labels[part], "split": splits[part]})
        pq.write_table(table, tmp_path / f"{k}.parquet", row_group_size=group)
    rows = rows_of(tmp_path, rows_per_part, limit)
    n = min(limit or 40, 40)
    assert [row["image"] for row in rows] == [png(i) for i in range(n)]
    assert [row["label"] for row in rows] == labels[:n]
    assert [row["split"] for row in rows] == splits[:n]


def test_a_large_row_group_is_gone_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [png(i % 3) for i in range(2000)]}), tmp_path / "x.parquet")
    source = resolve_source(str(tmp_path), rows_per_part=100)
    opened = []
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, *a, **k: opened.append(k) or original(self, *a, **k)
    )
    assert [table.num_rows for _, table in read_parts(source.parts, DATA)] == [100] * 20
    assert len(opened) == 1
    assert read_part(source.parts[13], DATA)["row"].to_pylist() == list(range(1300, 1400))
    some = [source.parts[2], source.parts[17]]
    assert [table["row"][0].as_py() for _, table in read_parts(some, DATA)] == [200, 1700]
    assert len(opened) == 3


def test_planning_reads_the_footer_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [png(i) for i in range(50)]}), path, row_group_size=10)
    data = bytearray(path.read_bytes())
    first = resolve_source(str(path), rows_per_part=10)
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    source = resolve_source(str(path), rows_per_part=10)
    assert source == first
    errors = [row["error"] for _, table in read_parts(source.parts, DATA) for row in table.to_pylist()]
    assert len(errors) == 50
    assert errors[0] == "unreadable"
    assert errors[-1] is None


def test_as_datasets_writes_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "seen.png").write_bytes(png(7))
    cells = [{"bytes": png(0), "path": "a.png"}, None]
    paths = ["../seen.png", None, "gone.png", "https://example.org/x.png"]
    cells[1:1] = [{"bytes": None, "path": path} for path in paths]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"kind": pa.array([0, 1, -1, 1, 5, None]), "img": pa.array(cells, kind)})
    table = table.replace_schema_metadata({"huggingface": json.dumps(FEATURES)})
    pq.write_table(table, tmp_path / "data" / "validation-00000-of-00001.parquet")
    source = resolve_source(str(tmp_path / "data"), rows_per_part=10)
    assert source.label_names == ("cat", "dog")
    assert source.splits == ("validation",)
    rows = rows_of(tmp_path / "data")
    assert [row["label"] for row in rows] == ["cat", "dog", None, "dog", "5", None]
    assert [row["error"] for row in rows] == [None, None, "empty", "unreadable", "unreadable", "empty"]
    assert [row["image"] for row in rows[:2]] == [png(0), png(7)]
    assert rows[0]["path"] == "a.png"
    assert {row["split"] for row in rows} == {"validation"}


def test_paths_instead_of_bytes(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    paths = ["0.png", str(tmp_path / "1.png"), f"file://{tmp_path}/2.png", "memory://2.png", None]
    pq.write_table(pa.table({"image": paths, "label": [[1], [0], [1, 2], [], None]}), tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "x.parquet")
    assert [row["image"] for row in rows] == [png(0), png(1), png(2), None, None]
    assert [row["error"] for row in rows] == [None, None, None, "unreadable", "empty"]
    assert [row["label"] for row in rows] == [None] * 5


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_kinds_of_columns(tmp_path: Path, kind: pa.DataType) -> None:
    labels = pa.array(["x", None, "y"]).dictionary_encode()
    table = pa.table({"image": pa.array([png(0), b"", b"1" * 1001], kind), "label": labels})
    pq.write_table(table, tmp_path / "x.parquet")
    rows = rows_of(tmp_path)
    assert [row["error"] for row in rows] == [None, "empty", "too_many_bytes"]
    assert [row["label"] for row in rows] == ["x", None, "y"]
    assert rows[0]["path"] == "x.parquet#0"


def test_files_without_labels_beside_files_with(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(0)], "label": ["a"]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": [png(1)], "text": [["words"]]}), tmp_path / "test.parquet")
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert source.has_labels
    assert source.splits == ("test", "train")
    assert read_label_names(source) == ("a",)
    assert [(row["split"], row["label"]) for row in rows_of(tmp_path)] == [("test", None), ("train", "a")]


def test_faults_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for table, words in (
        (pa.table({"label": ["a"]}), "must be called 'image'"),
        (pa.table({"image": [1, 2]}), "must hold encoded bytes"),
        (pa.table({"image": pa.array([], pa.binary())}), "no rows"),
    ):
        pq.write_table(table, path)
        with pytest.raises(UserError, match=words):
            resolve_source(str(path), rows_per_part=10)
    for data in (b"", b"PAR1 but not really"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read"):
            resolve_source(str(path), rows_per_part=10)


@pytest.mark.parametrize("name", ["target", "class_id", "Label", "Class Name", "category", "species", "y"])
def test_label_columns_by_other_names(tmp_path: Path, name: str) -> None:
    pq.write_table(
        pa.table({"Image": [png(0)] * 2, name: ["cat", "dog"], "Subset": ["train", "test"]}), tmp_path / "x.parquet"
    )
    source = resolve_source(str(tmp_path), rows_per_part=10)
    rows = [row for part in source.parts for row in read_part(part, DATA).to_pylist()]
    assert [(row["label"], row["split"]) for row in rows] == [("cat", "train"), ("dog", "test")]
    assert source.notes == ()


def test_columns_that_may_be_labels_are_said(tmp_path: Path) -> None:
    table = pa.table({"image": [png(0)] * 2, "quality": ["cat", "dog"], "id": [1, 2], "caption": ["a", "b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert "No column is called as labels are (quality): call it 'label'" in " ".join(source.notes)
    assert not source.has_labels
    pq.write_table(table.drop_columns("quality"), tmp_path / "x.parquet")
    assert resolve_source(str(tmp_path), rows_per_part=10).notes == ()


def test_captions_are_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydapt.data.tables._MOST_LABEL_NAMES", 3)
    pq.write_table(pa.table({"image": [png(0)] * 5, "label": list("abcde")}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"set data\.class_names"):
        read_label_names(resolve_source(str(tmp_path), rows_per_part=10))


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, numbers in (("train", range(10)), ("test", range(10, 13))):
        (tmp_path / split).mkdir()
        images = pa.array([{"bytes": png(i), "path": None} for i in numbers], kind)
        table = pa.table({"img": images, "kind": [i % 2 for i in numbers]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(FEATURES)})
        for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):
            with pa.ipc.new_stream(tmp_path / split / name, table.schema) as writer:
                writer.write_table(table, max_chunksize=4)
        (tmp_path / split / "dataset_info.json").write_text("{}")
    rows = rows_of(tmp_path, rows_per_part=3)
    assert [row["image"] for row in rows] == [png(i) for i in [*range(10, 13), *range(10)]]
    assert [row["split"] for row in rows] == ["test"] * 3 + ["train"] * 10
    assert rows[1]["label"] == "dog"
    (tmp_path / "test" / "data-00000-of-00001.arrow").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        resolve_source(str(tmp_path), rows_per_part=3)


def test_a_label_of_save_to_disk_corrected_in_place_is_noticed(tmp_path: Path) -> None:
    """The file has the size and the time stamp that it had."""
    path, sources = tmp_path / "data-00000-of-00001.arrow", []
    for label in ("cat", "dog"):
        table = pa.table({"image": [png(i) for i in range(5)], "label": ["cat", label, "dog", "dog", "cat"]})
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        os.utime(path, ns=(1, 1))
        sources.append(resolve_source(str(tmp_path), rows_per_part=2))
    assert sources[0].identity == sources[1].identity
    assert sources[0].label_identity != sources[1].label_identity
    fresh = read_row_labels(sources[1])
    assert fresh is not None
    assert list(fresh.labels) == [row["label"] for row in rows_of(tmp_path)] == ["cat", "dog", "dog", "dog", "cat"]
    assert dict(sources[1].label_counts or ()) == {"cat": 2, "dog": 3}


def test_tables_in_memory() -> None:
    memory = fsspec.filesystem("memory")
    with memory.open("/tables/x.parquet", "wb") as file:
        pq.write_table(pa.table({"image": [png(i) for i in range(9)]}), file, row_group_size=2)
    memory.pipe("/tables/y.arrow", b"")
    assert [row["image"] for row in rows_of("memory://tables/x.parquet")] == [png(i) for i in range(9)]
    with pytest.raises(UserError, match="save the set as Parquet"):
        resolve_source("memory://tables", rows_per_part=3)
    memory.rm("/tables", recursive=True)
