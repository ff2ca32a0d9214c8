"""A threshold after the run, and the files that people go on with."""

import csv
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image

import raydapt
from raydapt.cli import cli
from raydapt.data.sources import read_part, resolve_source
from raydapt.errors import UserError
from raydapt.run.labelled_set import as_csv, as_fiftyone, as_label_studio, files_of, rest_of, write_folder
from raydapt.settings.groups import DataSettings
from raydapt.store.run_record import Run
from raydapt.verbs.labelled_files import Places, after_prediction, write_files
from raydapt.verbs.review import open_review
from raydapt.verbs.review_population import all_predictions_of_run
from raydapt.verbs.threshold import in_words, threshold
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
    out = str(tmp_path / "out")
    places = write_files(str(copy), [], chosen, Places(csv=out, label_studio=out))
    assert [Path(place).name for place in places] == ["labels.csv", "rest.csv", "tasks.json", "interface.xml"]
    assert len((tmp_path / "out/labels.csv").read_text().splitlines()) == 91
    with pytest.raises(UserError, match="--folder needs images"):
        write_files(str(copy), [], chosen, Places(folder=str(tmp_path / "f")))
    with pytest.raises(UserError, match="--fiftyone needs images"):
        write_files(str(copy), [], chosen, Places(fiftyone=str(tmp_path / "f")))


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


def test_every_answer_is_taken_where_no_precision_is_wanted(made: Run, tmp_path: Path) -> None:
    assert after_prediction(made.path, (), Places(), precision=None) == []
    first, *places = after_prediction(made.path, (), Places(csv=str(tmp_path)), precision=None)
    assert first.startswith("Taken: 90 of 90 images, ")
    assert [Path(place).name for place in places] == ["labels.csv", "rest.csv"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "labels.csv").read_text("utf-8-sig"))))
    assert {row["taken"] for row in rows} == {"yes"}


def test_images_that_cannot_be_read_are_no_rows_and_copies_are(made: Run) -> None:
    """`raydapt predict` tells of both; a copy has the id of its content."""
    answers = all_predictions_of_run(made)
    unread = {**dict.fromkeys(answers.column_names), "id": "unread", "path": "broken.png"}
    copied = {**answers.slice(0, 1).to_pylist()[0], "path": "copy.png"}
    more = pa.Table.from_pylist([*answers.to_pylist(), unread, copied], schema=answers.schema)
    chosen = threshold(made.path, precision=0.5, predicted=more)
    assert chosen.told["images"] == 90
    assert chosen.table["path"].to_pylist()[-1] == "copy.png"
    first, *_, last = chosen.table.to_pylist()
    assert {**first, "path": ""} == {**last, "path": ""}
    assert "unread" not in chosen.table["id"].to_pylist()


def test_python_has_the_same_rows(made: Run, tmp_path: Path) -> None:
    rows = raydapt.load(made.path).labelled(precision=0.8)
    assert rows.to_dict("list") == threshold(made.path, precision=0.8).table.to_pydict()
    with pytest.raises(UserError, match="--folder needs images"):
        raydapt.load(made.path).labelled(folder=tmp_path / "new")


def test_options_are_looked_at_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--copy goes with --folder"):
        Places(copy=True).check()
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="holds something already"):
        Places(folder=str(tmp_path)).check()
    with pytest.raises(UserError, match="holds something already"):
        Places(folder=str(tmp_path / "x")).check()


def test_fiftyone_finds_files_labels_and_confidences() -> None:
    """The layout of a FiftyOneImageClassificationDataset whose media are elsewhere."""
    data, labels = as_fiftyone(
        table([("a", "1.png", "cat", 0.5, True, "run")]), ["cat", "dog"], {"a": Path("/x/ü.png")}
    )
    assert json.loads(data) == {"a": "/x/ü.png"}
    told = {"label": "cat", "confidence": 0.5, "attributes": {"taken": True, "by": "run"}}
    assert json.loads(labels) == {"classes": ["cat", "dog"], "labels": {"a": told}}


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_of_links_or_copies_can_be_read_as_labelled(tmp_path: Path, copy: bool) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for i, place in enumerate(["1.png", "2.png", "3.png", "deep/1.PNG"]):
        Image.new("RGB", (5, 5), (60 * i, 0, 0)).save(photos / place)
    source = resolve_source(str(photos), rows_per_part=2)
    data = DataSettings(source=str(photos))
    parts = [read_part(part, data) for part in source.parts]
    ids = [id_ for part in parts for id_ in part["id"].to_pylist()]
    row_of = {
        id_: row for part in parts for id_, row in zip(part["id"].to_pylist(), part["row"].to_pylist(), strict=True)
    }
    classes = ["../evil", "sea lake", "sea_lake", "../evil"]
    assert sorted(path.name for path in files_of(source).values()) == ["1.PNG", "1.png", "2.png", "3.png"]
    rows = [(id_, "p", class_, 0.9, True, "run") for id_, class_ in zip(ids, classes, strict=True)]
    target = tmp_path / "out"
    assert write_folder(table(rows), target, source, data, row_of, copy=copy) == 4
    found = sorted(path for path in target.rglob("*") if not path.is_dir())
    assert [str(path.relative_to(target)) for path in found] == [
        "evil/1.png", f"evil/{ids[3]}.PNG", "sea_lake/2.png", "sea_lake-2/3.png",
    ]  # fmt: skip
    assert [path.is_symlink() for path in found] == [not copy] * 4
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


def test_run_and_predict_write_the_labelled_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As people type it: photos with a broken one and a copy, answered and sorted into folders."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(24):
        Image.new("RGB", (16, 16), (10 * number, 90, 40)).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    shutil.copy(photos / "3.png", photos / "copy.png")
    given = ["data.source=photos", "data.class_names=[sea, forest]", "data.max_error_share=0.5"]
    runner = CliRunner()
    found = runner.invoke(cli, ["run", "zero_shot", *given, "name=z", "--folder", "one", "--csv", "lists"])
    assert found.exit_code == 0, found.output
    assert "one: 24 images" in found.output
    assert len(list(Path("one").glob("*/*.png"))) == 24
    assert len(Path("lists/labels.csv").read_text().splitlines()) == 26  # the head, and the copy
    told = ["--fiftyone", "f", "--folder", "two", "--copy"]
    found = runner.invoke(cli, ["predict", "runs/z", "data.source=photos", *told])
    assert found.exit_code == 0, found.output
    assert (
        json.loads(Path("f/data.json").read_text()).keys()
        == json.loads(Path("f/labels.json").read_text())["labels"].keys()
    )
    assert not any(path.is_symlink() for path in Path("two").rglob("*"))
    found = runner.invoke(cli, ["run", "zero_shot", *given, "name=z", "--folder", "one"])
    assert isinstance(found.exception, UserError)
    assert "holds something already" in str(found.exception)
