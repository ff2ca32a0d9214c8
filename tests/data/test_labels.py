import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data.classes import ClassSpace, resolve_classes
from raydapt.data.labels import check_numbers, examine, find_classes
from raydapt.data.named_sets import named_set, set_names
from raydapt.data.sources import read_label_names, read_part, read_row_labels, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import png

FLOWERS = ("daisy", "rose", "tulip")


def space(names: tuple[str, ...] = FLOWERS, first_label: int | None = None) -> ClassSpace:
    return ClassSpace(names=names, labels=names, templates=("{}",), first_label=first_label)


@pytest.mark.parametrize("labels", [["1", "2", "3"], ["1", "2"], ["3"], ["001", "003"], ["1.0", "2.0"], ["1", "x"]])
def test_numbers_that_may_start_at_1_are_refused_until_it_is_said(labels: list[str]) -> None:
    with pytest.raises(UserError, match=r"data\.first_label=1") as caught:
        find_classes(space(), labels)
    assert "'daisy'" in str(caught.value)
    assert "\n" not in str(caught.value)
    numbers = [int(float(label)) if label != "x" else None for label in labels]
    for first in (0, 1):
        found, _ = find_classes(space(first_label=first), labels)
        wanted = [-1 if n is None or not 0 <= n - first < 3 else n - first for n in numbers]
        assert found.tolist() == wanted


@pytest.mark.parametrize("labels", [["0", "1", "2"], ["0"], ["2021", "2022"], ["rose", "tulip"], []])
def test_numbers_that_start_at_0_and_years_are_not_refused(labels: list[str]) -> None:
    check_numbers(space(), Counter(labels))


def test_numbers_that_are_names_are_names() -> None:
    numbered = space(("1", "2", "3"))
    found, findings = find_classes(numbered, ["1", "2", "3", "03", "3.0", "4"])
    assert found.tolist() == [0, 1, 2, 2, 2, -1]
    assert [unknown.label for unknown in findings.unknown] == ["4"]


@pytest.mark.parametrize("kind", ["folders", "parquet"])
def test_flowers_counted_from_1(tmp_path: Path, kind: str) -> None:
    if kind == "folders":
        for name in ("1", "2", "3"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.png").write_bytes(png(int(name)))
    else:
        pq.write_table(pa.table({"image": [png(i) for i in range(3)], "label": [1, 2, 3]}), tmp_path / "x.parquet")
    source = resolve_source(str(tmp_path), rows_per_part=10)
    labels = read_part(source.parts[0], DataSettings())["label"].to_pylist()
    settings = DataSettings(source=str(tmp_path), class_names=list(FLOWERS))
    with pytest.raises(UserError, match=r"data\.first_label"):
        find_classes(resolve_classes(settings, source), labels)
    stated = resolve_classes(replace(settings, first_label=1), source)
    assert find_classes(stated, labels)[0].tolist() == [0, 1, 2]


def test_labels_that_are_no_class_are_counted_and_named() -> None:
    labels = ["rose"] * 8 + ["tulipp"] * 3 + [None, "Submarine"]
    found, findings = find_classes(space(), labels)
    assert found.tolist() == [1] * 8 + [-1] * 5
    assert (findings.labelled, findings.unknown_images) == (12, 4)
    assert [(u.label, u.images, u.nearest) for u in findings.unknown] == [
        ("tulipp", 3, "tulip"),
        ("Submarine", 1, None),
    ]
    assert "4 of 12 labelled images" in findings.sentence
    assert "'tulipp' (3 images, nearest 'tulip'), 'Submarine' (1 image)" in findings.sentence
    with pytest.raises(UserError, match=r"data\.max_error_share=0\.01"):
        findings.require_measurable(0.01)
    findings.require_measurable(0.4)
    assert findings.as_dict()["unknown"][0] == {"label": "tulipp", "images": 3, "nearest": "tulip"}
    whole = examine(space(), {"rose": 200, "daisy": 100})
    assert whole.sentence == ""
    whole.require_measurable(0.0)


def test_names_in_every_normal_form_are_one_and_others_are_not() -> None:
    composed = "café"
    apart = unicodedata.normalize("NFD", composed)
    for name, label in ((composed, apart), (apart, composed)):
        assert space((name, "bar")).index_of(label) == 0
    source = resolve_source("digits", rows_per_part=2000)
    assert resolve_classes(DataSettings(class_names=[apart, "bar"]), source).names == (composed, "bar")
    with pytest.raises(UserError, match="more than once"):
        resolve_classes(DataSettings(class_names=[apart, composed]), source)
    languages = space(("C", "Java"))
    assert [languages.index_of(label) for label in ("C", "c", "C++", "C#", "java", "Java!")] == [0, 0, -1, -1, 1, -1]
    assert space(("C", "C++", "C#")).indices_of(["C#", "c++", "c"]).tolist() == [2, 1, 0]


@pytest.mark.parametrize("name", set_names())
def test_the_settings_of_a_finished_run_know_the_labels_that_the_run_knew(name: str) -> None:
    known = named_set(name)
    assert known is not None
    digits = resolve_source("digits", rows_per_part=2000)
    at_run = resolve_classes(DataSettings(source=name), digits)
    for source in (name, "elsewhere/photos"):
        stored = DataSettings(source=source, class_names=list(at_run.names), templates=list(at_run.templates))
        later = resolve_classes(stored, digits)
        for label in (*known.labels, *known.class_names, *known.aliases):
            assert later.index_of(label) == at_run.index_of(label) >= 0


def test_the_settings_of_a_finished_run_know_the_labels_of_folders() -> None:
    labels = ("a_b", "a-b", "Grand  Piano", "c++", "c")
    at_run = ClassSpace(names=("a b", "a-b", "Grand Piano", "c++", "c"), labels=labels, templates=("{}",))
    later = ClassSpace(names=at_run.names, labels=at_run.names, templates=("{}",))
    assert later.indices_of(labels).tolist() == at_run.indices_of(labels).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array([0.0, 1.0, None, float("nan"), -1.0, 12.0]), ["0", "1", None, None, None, "12"]),
        (pa.array([0.0, 2.0], pa.float32()), ["0", "2"]),
        (pa.array([0.5, 2.0]), ["0.5", "2"]),
        (pa.array([True, False, None]), ["True", "False", None]),
        (pa.array([3, None, 7], pa.uint8()).dictionary_encode(), ["3", None, "7"]),
        (pa.array(["a", "", " "]), ["a", None, None]),
        (pa.array([1, 2], pa.decimal128(5, 1)), ["1", "2"]),
    ],
)
def test_columns_of_labels(tmp_path: Path, column: pa.Array, wanted: list[str | None]) -> None:
    pq.write_table(pa.table({"image": [png(i) for i in range(len(column))], "label": column}), tmp_path / "x.parquet")
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert source.has_labels
    assert read_part(source.parts[0], DataSettings())["label"].to_pylist() == wanted
    assert set(read_label_names(source)) == {label for label in wanted if label is not None}


def test_class_labels_that_arrive_as_floats_have_their_names(tmp_path: Path) -> None:
    import json

    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    table = pa.table({"image": [png(i) for i in range(3)], "label": [1.0, None, 0.0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "x.parquet")
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert read_part(source.parts[0], DataSettings())["label"].to_pylist() == ["dog", None, "cat"]
    assert np.array_equal(space(("cat", "dog")).indices_of(["dog", None, "cat"]), [1, -1, 0])


def correct(path: Path, table: pa.Table, column: str, row: int, value: object) -> None:
    """Writes a table again with one cell changed, by a value of the same length, as an editor in place would."""
    values = table[column].to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array(values)), path, row_group_size=40, compression="none")


@pytest.mark.parametrize(("column", "value"), [("label", "b"), ("split", "tests")])
@pytest.mark.parametrize("limit", [None, 30])
def test_a_label_corrected_in_place_is_noticed_and_the_pixels_are_not(
    tmp_path: Path, column: str, value: str, limit: int | None
) -> None:
    path = tmp_path / "x.parquet"
    columns = {"image": [png(i % 5) for i in range(100)], "label": ["a", "b", "c", "d"] * 25}
    table = pa.table(columns | {"split": ["train", "tests"] * 50})
    pq.write_table(table, path, row_group_size=40, compression="none")
    before = resolve_source(str(path), rows_per_part=16, limit=limit)
    correct(path, table, column, 6, value)
    after = resolve_source(str(path), rows_per_part=16, limit=limit)
    assert after.identity == before.identity  # what the features depend on: their statistics are the same
    assert after.label_identity != before.label_identity
    fresh = read_row_labels(after)
    assert fresh is not None
    read = pa.concat_tables(read_part(part, DataSettings()) for part in after.parts)
    assert (fresh.labels, fresh.splits) == (read["label"].to_pylist(), read["split"].to_pylist())
    assert getattr(fresh, f"{column}s")[6] == value
    assert dict(after.label_counts or ()) == Counter(fresh.labels)
    pq.write_table(table, path, row_group_size=40, compression="none")
    assert resolve_source(str(path), rows_per_part=16, limit=limit) == before


def test_counts_of_labels_are_known_before_anything_is_read(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    assert resolve_source(str(tmp_path), rows_per_part=2).label_counts == (("a", 2), ("b", 1))
    assert resolve_source(str(tmp_path), rows_per_part=2, limit=2).label_counts == (("a", 2),)
    assert len(resolve_source("digits", rows_per_part=500).label_counts or ()) == 10


def test_files_elsewhere_are_known_by_what_their_file_system_tells() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    table = pa.table({"image": [png(0), png(1)], "label": ["a", "b"]})
    with memory.open("/labels/x.parquet", "wb") as file:
        pq.write_table(table, file)
    source = resolve_source("memory://labels", rows_per_part=2)
    assert source.label_identity
    assert read_row_labels(source).labels == ["a", "b"]
    memory.rm("/labels", recursive=True)


def test_gaps_written_as_text_are_no_labels_unless_a_class_is_called_so() -> None:
    labels = ["0", "2", "-1", " -1 ", "nan", "NaN", "-1.0", "<NA>", "-2", None]
    found, findings = find_classes(space(), labels)
    assert found.tolist() == [0, 2, *[-1] * 8]
    assert findings.labelled == 3
    assert [(unknown.label, unknown.images) for unknown in findings.unknown] == [("-2", 1)]
    moods = space(names=("-1", "0", "1"))
    found, findings = find_classes(moods, ["-1", "0", "1", "nan"])
    assert found.tolist() == [0, 1, 2, -1]
    assert findings.labelled == 3
    assert not findings.unknown
