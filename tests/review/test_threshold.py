"""A threshold after the run, and the files that people go on with."""

import csv
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from raydapt.data.sources import read_part, resolve_source
from raydapt.errors import UserError
from raydapt.run.labelled_set import as_csv, as_label_studio, rest_of, write_folder
from raydapt.settings.groups import DataSettings
from raydapt.store.run_record import Run
from raydapt.verbs.review import open_review
from raydapt.verbs.threshold import in_words, threshold, write_files
from tests.review.runs import NAMES, make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("threshold"), "transduct")


def table(rows: list[tuple[str, str, str, float, bool, str]]) -> pa.Table:
    return pa.table(
        dict(zip(("id", "path", "class", "probability", "taken", "by"), zip(*rows, strict=True), strict=True))
    )


def test_without_a_review_it_says_that_nobody_has_checked(made: Run) -> None:
    chosen = threshold(made.path, precision=0.8)
    assert chosen.told["from"] == "no review"
    assert "Nobody has checked" in in_words(chosen.told)
    assert json.loads(made.read_bytes("threshold.json"))["taken"] == chosen.told["taken"]
    nothing = {"taken": 0, "precision_wanted": 99.0, "from": "no review"}
    assert in_words(nothing) == "No answer is sure enough for 99 % right, going by no review."


def test_with_a_review_people_go_before_the_run(made: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made.path, copy)
    review = open_review([str(copy)])
    for number in range(30):
        id_ = review.next_id("me")
        assert id_ is not None
        if number == 3:
            review.give(id_, "none", None, "me")
        elif number == 4:
            review.give(id_, "cannot tell", None, "me")
        else:
            review.give(id_, "class", NAMES[review.population.id_N.index(id_) % 3], "me")
    chosen = threshold(str(copy), precision=0.9)
    assert chosen.told["from"] == "a review of 29 answers"
    assert "Going by the answered ones" in in_words(chosen.told)
    rows = {row["id"]: row for row in chosen.table.to_pylist()}
    by = [rows[answer.id]["by"] for answer in review.session.answers]
    assert by == ["person"] * 4 + ["run"] + ["person"] * 25
    assert not rows[review.session.answers[3].id]["taken"]
    for answer in review.session.answers[5:]:
        assert (rows[answer.id]["class"], rows[answer.id]["probability"]) == (answer.name, 1.0)
    places = write_files(str(copy), [], chosen, csv=str(tmp_path / "out"), label_studio=str(tmp_path / "out"))
    assert [Path(place).name for place in places] == ["labels.csv", "rest.csv", "tasks.json", "interface.xml"]
    assert len((tmp_path / "out/labels.csv").read_text().splitlines()) == 91
    with pytest.raises(UserError, match="--folder needs images"):
        write_files(str(copy), [], chosen, folder=str(tmp_path / "f"))


def test_the_rest_begins_with_what_is_most_likely_wrong() -> None:
    rows = [("a", "1", "x", 0.9, True, "run"), ("b", "2", "x", 0.6, False, "run"), ("c", "3", "y", 0.4, False, "run"),
            ("d", "4", "y", 0.0, False, "person")]  # fmt: skip
    assert rest_of(table(rows))["id"].to_pylist() == ["c", "b"]


def test_csv_is_read_back_and_holds_no_formula() -> None:
    text = as_csv(table([("a", "=cmd|'x'!A1", 'o"ak, old', 0.5, True, "run")])).decode("utf-8-sig")
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"id": "a", "path": "'=cmd|'x'!A1", "class": 'o"ak, old', "probability": "0.5000", "taken": "yes", "by": "run"}
    ]


def test_tasks_of_label_studio_name_the_choice() -> None:
    tasks, interface = as_label_studio(
        table([("a", "s3://b/1.png", "cat", 0.5, False, "run")]), ["cat", 'a"<b>'], "run"
    )
    (task,) = json.loads(tasks)
    assert task["data"]["image"] == "s3://b/1.png"
    (prediction,) = task["predictions"]
    assert prediction["result"][0]["value"] == {"choices": ["cat"]}
    assert (prediction["result"][0]["from_name"], prediction["result"][0]["to_name"]) == ("class", "image")
    assert b'<Choice value="cat"/>' in interface
    assert b"<b>" not in interface


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_of_links_or_copies_can_be_read_as_labelled(tmp_path: Path, copy: bool) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for i, place in enumerate(["1.png", "2.png", "deep/1.png"]):
        Image.new("RGB", (5, 5), (60 * i, 0, 0)).save(photos / place)
    source = resolve_source(str(photos), rows_per_part=2)
    data = DataSettings(source=str(photos))
    parts = [read_part(part, data) for part in source.parts]
    ids = [id_ for part in parts for id_ in part["id"].to_pylist()]
    row_of = {
        id_: row for part in parts for id_, row in zip(part["id"].to_pylist(), part["row"].to_pylist(), strict=True)
    }
    classes = ["../evil", "sea lake", "sea_lake"]
    rows = [(id_, "p", class_, 0.9, True, "run") for id_, class_ in zip(ids, classes, strict=True)]
    target = tmp_path / "out"
    assert write_folder(table(rows), target, source, data, row_of, copy=copy) == 3
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*.png"))
    assert sorted(name.split("/")[0] for name in found) == ["evil", "sea_lake", "sea_lake-2"]
    assert [path.is_symlink() for path in target.rglob("*.png")] == [not copy] * 3
    again = resolve_source(str(target), rows_per_part=2)
    assert again.label_names == ("evil", "sea_lake", "sea_lake-2")
    with pytest.raises(UserError, match=r"--folder.*already"):
        write_folder(table(rows), target, source, data, row_of, copy=copy)


def test_images_of_a_table_are_written_as_files(tmp_path: Path) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (5, 5)).save(sink, format="WEBP")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [sink.getvalue()], "label": ["x"]}), tmp_path / "t.parquet")
    source = resolve_source(str(tmp_path / "t.parquet"), rows_per_part=2)
    data = DataSettings(source=str(tmp_path / "t.parquet"))
    (id_,) = read_part(source.parts[0], data)["id"].to_pylist()
    rows = [(id_, "p", "oak", 0.9, True, "run")]
    assert write_folder(table(rows), tmp_path / "out", source, data, {id_: 0}, copy=False) == 1
    assert (tmp_path / f"out/oak/{id_}.webp").read_bytes() == sink.getvalue()
