import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data.embedding_files import TableRows
from raydapt.data.embeddings import read
from raydapt.data.sources import read_label_names, resolve_source
from raydapt.errors import UserError
from tests.data.features import unit, vectors, write

HALF, WIDE = np.float16, np.float64


def rows_of(address: Path | str, rows_per_part: int = 5, limit: int | None = None) -> list[dict[str, object]]:
    source = resolve_source(str(address), rows_per_part=rows_per_part, limit=limit)
    assert source.kind == "features"
    rows = [row for part, table in read(source.parts) for row in table.to_pylist()]
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert len(rows) == source.rows == sum(part.rows or 0 for part in source.parts)
    return rows


def features_of(rows: list[dict[str, object]]) -> np.ndarray:
    return np.array([row["feature"] for row in rows])


@pytest.mark.parametrize("group", [1, 4, 100])
@pytest.mark.parametrize("rows_per_part", [1, 7, 100])
@pytest.mark.parametrize("limit", [None, 3, 22, 99])
def test_every_row_once_at_unit_length(tmp_path: Path, group: int, rows_per_part: int, limit: int | None) -> None:
    value, n = vectors(30), min(limit or 30, 30)
    labels, splits = [f"class {i % 3}" for i in range(30)], ["train", "test"] * 15
    ids = [f"image {i}" for i in range(30)]
    for k, some in enumerate((slice(0, 19), slice(19, 30))):
        columns = {"label": labels[some], "split": splits[some], "id": ids[some]}
        write(tmp_path / f"{k}.parquet", value[some], group=group, **columns)
    rows = rows_of(tmp_path, rows_per_part, limit)
    np.testing.assert_allclose(features_of(rows), unit(value)[:n], atol=1e-6)
    assert [row["label"] for row in rows] == labels[:n]
    assert [row["split"] for row in rows] == splits[:n]
    assert [row["id"] for row in rows] == ids[:n]
    assert not any(row["error"] for row in rows)


@pytest.mark.parametrize("kind", [pa.list_(pa.float16()), pa.list_(pa.float32()), pa.large_list(pa.float64()),
                                  pa.list_(pa.float16(), 4), pa.list_(pa.float64(), 4)])  # fmt: skip
def test_any_list_of_floats(tmp_path: Path, kind: pa.DataType) -> None:
    value = vectors(6).astype(HALF)
    pq.write_table(pa.table({"embedding": pa.array(list(value.astype(WIDE)), kind)}), tmp_path / "x.parquet")
    np.testing.assert_allclose(features_of(rows_of(tmp_path / "x.parquet")), unit(value), atol=1e-6)


def test_pending_parts_alone_are_read(tmp_path: Path) -> None:
    value = vectors(64)
    write(tmp_path / "x.parquet", value, group=8)
    source = resolve_source(str(tmp_path), rows_per_part=3)
    chosen = [source.parts[i] for i in (1, 2, 9, 21, 4)]
    for part, table in read(chosen):
        expected = unit(value)[part.start : part.stop]
        np.testing.assert_allclose(np.array(table["feature"].to_pylist()), expected, atol=1e-6)


def test_a_row_group_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.parquet", vectors(5000), group=2500)
    opened: list[int] = []
    original = TableRows._from_group_of
    monkeypatch.setattr(TableRows, "_from_group_of", lambda self, row: opened.append(row) or original(self, row))
    assert len(rows_of(tmp_path, rows_per_part=512)) == 5000
    assert opened == [0]


def test_bad_vectors_are_rows_in_error(tmp_path: Path) -> None:
    good = [1.0, 2.0, 2.0, 0.0]
    value = [
        good,
        None,
        [0.0] * 4,
        [np.nan, 1, 1, 1],
        [np.inf, 0, 0, 0],
        [1.0, 2.0, 3.0],
        [1.0, None, 0, 0],
        [1e-30] * 4,
    ]
    pq.write_table(pa.table({"feature": pa.array(value, pa.list_(pa.float32()))}), tmp_path / "train.parquet")
    rows = rows_of(tmp_path, rows_per_part=3)
    errors = [None, "no_vector", "zero_vector", "not_finite", "not_finite", "wrong_width", "not_finite", None]
    assert [row["error"] for row in rows] == errors
    assert [row["feature"] is None for row in rows] == [error is not None for error in errors]
    np.testing.assert_allclose(rows[0]["feature"], np.array(good) / 3, atol=1e-7)
    np.testing.assert_allclose(rows[-1]["feature"], [0.5] * 4, atol=1e-7)
    assert rows[3]["path"] == "train.parquet#3"
    assert {row["split"] for row in rows} == {"train"}


def test_ids_come_from_content(tmp_path: Path) -> None:
    value = vectors(4)
    value[2] = value[0]
    a, b = rows_of(write(tmp_path / "a.parquet", value)), rows_of(write(tmp_path / "b.parquet", value, group=2))
    ids = [str(row["id"]) for row in a]
    assert ids == [row["id"] for row in b]
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3


def test_unit_vectors_come_back_bit_for_bit(tmp_path: Path) -> None:
    value = unit(vectors(50, 64)).astype(np.float32)
    assert np.array_equal(features_of(rows_of(write(tmp_path / "x.parquet", value))).astype(np.float32), value)


def test_a_folder_of_clip_retrieval(tmp_path: Path) -> None:
    value = vectors(9)
    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / name).mkdir()
    for k, some in enumerate((slice(0, 5), slice(5, 9))):
        np.save(tmp_path / "img_emb" / f"img_emb_{k}.npy", value[some].astype(HALF))
        np.save(tmp_path / "text_emb" / f"text_emb_{k}.npy", -value[some])
        table = pa.table({"image_path": [f"{i}.jpg" for i in range(9)][some], "caption": ["a"] * len(value[some]),
                          "label": (["cat", "dog", "cow"] * 3)[some]})  # fmt: skip
        pq.write_table(table, tmp_path / "metadata" / f"metadata_{k}.parquet")
    rows = rows_of(tmp_path, rows_per_part=2)
    np.testing.assert_allclose(features_of(rows), unit(value.astype(HALF)), atol=1e-6)
    assert [row["path"] for row in rows] == [f"{i}.jpg" for i in range(9)]
    assert [row["label"] for row in rows] == ["cat", "dog", "cow"] * 3
    assert read_label_names(resolve_source(str(tmp_path), rows_per_part=4)) == ("cat", "cow", "dog")


def test_arrays_of_numpy(tmp_path: Path) -> None:
    value, labels = vectors(7), np.array([0, 1, 2, -1, 1, 0, 10])
    np.save(tmp_path / "alone.npy", value)
    assert {row["label"] for row in rows_of(tmp_path / "alone.npy", rows_per_part=3)} == {None}
    np.save(tmp_path / "x.npy", value.astype(WIDE))
    np.save(tmp_path / "x_labels.npy", labels)
    np.savez(tmp_path / "y.npz", features=value, labels=labels, ids=[f"i{k}" for k in range(7)])
    np.savez_compressed(tmp_path / "z.npz", feature=value, label=labels, id=[f"i{k}" for k in range(7)])
    for name in ("x.npy", "y.npz", "z.npz"):
        rows = rows_of(tmp_path / name, rows_per_part=3)
        np.testing.assert_allclose(features_of(rows), unit(value), atol=1e-6)
        assert [row["label"] for row in rows] == ["0", "1", "2", None, "1", "0", "10"]
    assert rows[5]["id"] == "i5"
    names = read_label_names(resolve_source(str(tmp_path / "z.npz"), rows_per_part=4))
    assert names == ("0", "1", "2", "10")


def test_features_of_any_file_system(tmp_path: Path) -> None:
    value = vectors(6)
    write(tmp_path / "x.parquet", value, label=["a", "b"] * 3)
    memory = fsspec.filesystem("memory")
    memory.pipe("/embeddings/x.parquet", (tmp_path / "x.parquet").read_bytes())
    try:
        rows = rows_of("memory://embeddings/x.parquet", rows_per_part=4)
        np.testing.assert_allclose(features_of(rows), unit(value), atol=1e-6)
    finally:
        memory.rm("/embeddings", recursive=True)


def test_class_embeddings_beside_features_are_no_images(tmp_path: Path) -> None:
    write(tmp_path / "features.parquet", vectors(3))
    write(tmp_path / "classes.parquet", vectors(2), name=["a", "b"])
    assert len(rows_of(tmp_path)) == 3


def test_images_come_first(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "feature": [[1.0]]}), tmp_path / "x.parquet")
    assert resolve_source(str(tmp_path), rows_per_part=4).kind == "parquet"


def test_a_changed_file_has_another_identity(tmp_path: Path) -> None:
    identities = set()
    for n in (3, 4):
        write(tmp_path / "x.parquet", vectors(n))
        identities |= {resolve_source(str(tmp_path), rows_per_part=k).identity for k in (2, 3)}
    assert len(identities) == 4


@pytest.mark.parametrize(
    ("kind", "word"),
    [("parquet", "label"), ("parquet", "split"), ("npz", "label"), ("npz", "split"), ("npy", "label")],
)
def test_a_text_corrected_in_place_is_another_identity(tmp_path: Path, kind: str, word: str) -> None:
    """Footer, size, header and time stamp are what they were."""
    value, path = vectors(8), tmp_path / f"x.{kind}"
    place = path.with_name("x_labels.npy") if kind == "npy" else path
    identities, given = [], path if kind == "npy" else tmp_path
    for changed in ("tests", "dev", "tests"):
        texts = ["train", "tests", "train", "zebra", "train", changed.ljust(5, "_"), "aaaaa", "train"]
        if kind == "parquet":
            table = pa.table({"feature": list(value), word: texts})
            pq.write_table(table, path, compression="none", use_dictionary=False)
        elif kind == "npy":
            np.save(path, value)
            np.save(place, np.array(texts))
        else:
            np.savez(path, feature=value, **{word: np.array(texts)})
        for file in (path, place):
            os.utime(file, ns=(1, 1))
        identities.append(resolve_source(str(given), rows_per_part=3).identity)
    assert identities[0] == identities[2] != identities[1]


def _object_array(folder: Path) -> None:
    np.save(folder / "x.npy", np.array([[1.0], "a"], dtype=object), allow_pickle=True)


def _metadata_too_short(folder: Path) -> None:
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", vectors(3))
    pq.write_table(pa.table({"image_path": ["a", "b"]}), folder / "metadata" / "metadata_0.parquet")


def _metadata_missing(folder: Path) -> None:
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    for k in range(2):
        np.save(folder / "img_emb" / f"img_emb_{k}.npy", vectors(3))
    pq.write_table(pa.table({"image_path": ["a"] * 3}), folder / "metadata" / "metadata_0.parquet")


def _two_widths(folder: Path) -> None:
    write(folder / "a.parquet", vectors(3, 4))
    write(folder / "b.parquet", vectors(3, 5))


def _cut_off(folder: Path) -> None:
    np.save(folder / "x.npy", vectors(100))
    (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:-40])


def _labels_too_few(folder: Path) -> None:
    np.save(folder / "x.npy", vectors(3))
    np.save(folder / "x_labels.npy", np.arange(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_object_array, "holds Python objects"),
        (_metadata_too_short, "has 2 rows.* has 3"),
        (_metadata_missing, "metadata_1.parquet"),
        (_two_widths, "of width 5.* of width 4"),
        (_cut_off, "cut off"),
        (_labels_too_few, "has 2 rows"),
        (lambda folder: np.save(folder / "x.npy", np.arange(6).reshape(2, 3)), "type int64"),
        (lambda folder: np.save(folder / "x.npy", np.ones(4, np.float32)), r"shape \[4\]"),
        (lambda folder: np.save(folder / "x.npy", np.asfortranarray(vectors(5))), "column by column"),
        (lambda folder: np.save(folder / "x.npy", vectors(0)), "no features"),
        (lambda folder: (folder / "x.npy").write_bytes(b"no array"), r"no readable \.npy"),
        (lambda folder: (folder / "x.npz").write_bytes(b"no archive"), "cannot be read"),
        (lambda folder: np.savez(folder / "x.npz", a=vectors(2), b=vectors(2)), "one of them must be called"),
        (lambda folder: np.savez(folder / "x.npz", feature=vectors(3), label=np.arange(2)), "has 2 rows"),
        (lambda folder: np.savez(folder / "x.npz", feature=vectors(2), label=[0.5, 1.5]), "texts or whole numbers"),
        (lambda folder: pq.write_table(pa.table({"feature": [1, 2]}), folder / "x.parquet"), "lists of floats"),
        (lambda folder: pq.write_table(pa.table({"feature": [["a"]]}), folder / "x.parquet"), "lists of floats"),
        (lambda folder: pq.write_table(pa.table({"feature": pa.array([None, None], pa.list_(pa.float32()))}),
                                       folder / "x.parquet"), "no vector in any of 2 rows"),
        (lambda folder: pq.write_table(pa.table({"feature": pa.array([[]], pa.list_(pa.float32()))}),
                                       folder / "x.parquet"), "no values"),
        (lambda folder: write(folder / "x.parquet", vectors(0)), "no features"),
        (lambda folder: pq.write_table(pa.table({"label": ["a"]}), folder / "x.parquet"), "'image' or 'feature'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        resolve_source(str(tmp_path), rows_per_part=4)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_unreadable_rows_say_so(tmp_path: Path) -> None:
    value = vectors(4000, 16)
    write(tmp_path / "x.parquet", value, group=1000)
    source = resolve_source(str(tmp_path), rows_per_part=500)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    start = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(0).data_page_offset
    data[start : start + 200] = b"\xff" * 200
    (tmp_path / "x.parquet").write_bytes(data)
    errors = [error for _, table in read(source.parts) for error in table["error"].to_pylist()]
    assert errors == [None] * 1000 + ["unreadable"] * 1000 + [None] * 2000
