"""An adapted run applied to other images."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data.sources import read_part, resolve_source
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.run.prediction import evaluate_on, predict
from raydapt.settings.groups import DataSettings
from raydapt.store.run_record import Run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("adapted")
    settings = ["method=fpl", "train.epochs=2", f"runs={folder}/runs", f"store={folder}/store"]
    return pipeline.run(load_config(None, settings))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty digits as a Parquet file without splits."""
    source = resolve_source("digits", rows_per_part=2000)
    table = read_part(source.parts[0], DataSettings()).slice(100, 50)
    path = tmp_path_factory.mktemp("others") / "others.parquet"
    pq.write_table(pa.table({"image": table["image"], "label": table["label"]}), path)
    return path


def test_new_images_are_predicted(adapted: Run, others: Path) -> None:
    path = predict(adapted.path, [f"data.source={others}"])
    table = pq.read_table(path)
    assert table.num_rows == 50
    assert set(table["predicted"].to_pylist()) <= set(map(str, range(10)))
    assert path.startswith(adapted.path)
    assert json.loads(adapted.read_bytes("metrics.json"))["name"] == adapted.name


def test_an_image_that_cannot_be_read_is_a_row_with_the_reason(
    adapted: Run, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(others)
    image = table["image"].to_pylist()
    image[3] = b"no image"
    source = tmp_path / "50 %=# (1).parquet"
    pq.write_table(table.set_column(0, "image", pa.array(image, pa.binary())), source)
    renamed = tmp_path / "best run (1) #2 é=x"
    shutil.copytree(adapted.path, renamed)
    monkeypatch.chdir(tmp_path)
    for output in ("photos 2024", ".", "o/été"):
        path = predict(str(renamed), [f"data.source={source}", "data.max_error_share=0.1"], output=output)
        assert Path(path) == tmp_path / output / "predictions.parquet"
        found = pq.read_table(path)
        assert found.num_rows == 50
        answered = [word is not None for word in found["predicted"].to_pylist()]
        assert answered == [error is None for error in found["error"].to_pylist()] == [row != 3 for row in range(50)]
        assert found["label"].to_pylist() == [str(label) for label in table["label"].to_pylist()]


def test_predictions_go_where_they_are_told(adapted: Run, others: Path, tmp_path: Path) -> None:
    path = predict(adapted.path, [f"data.source={others}"], output=str(tmp_path / "out"))
    assert path == str(tmp_path / "out" / "predictions.parquet")
    assert pq.read_metadata(path).num_rows == 50


def test_evaluation_of_its_own_set_repeats_the_run(adapted: Run) -> None:
    text = evaluate_on(adapted.path, [])
    measured = json.loads(text[: text.rindex("}") + 1])
    metrics = json.loads(adapted.read_bytes("metrics.json"))
    assert measured["adapted"] == metrics["adapted"]
    assert measured["zero_shot"] == metrics["zero_shot"]
    assert measured["images"] == metrics["evaluation"]["images"]


def test_evaluation_marks_images_that_were_adapted_to(adapted: Run, others: Path) -> None:
    marks = {}
    for overrides in ((), ("data.test_splits=[train]",), (f"data.source={others}",)):
        text = evaluate_on(adapted.path, list(overrides))
        measured = json.loads(text[: text.rindex("}") + 1])
        marks[overrides] = measured["transductive"]
        assert any(note.startswith("Transductive") for note in measured["notes"]) == marks[overrides]
    assert list(marks.values()) == [False, True, False]


def test_evaluation_counts_what_is_right(adapted: Run, others: Path) -> None:
    text = evaluate_on(adapted.path, [f"data.source={others}"])
    measured = json.loads(text[: text.rindex("}") + 1])
    table = pq.read_table(text.splitlines()[-1].removeprefix("Predictions: ")).to_pydict()
    right = sum(label == said for label, said in zip(table["label"], table["predicted"], strict=True))
    assert measured["adapted"]["top1"] == pytest.approx(100 * right / 50)


def test_a_learned_prompt_carries_over_to_another_class_list(adapted: Run, others: Path) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    text = evaluate_on(adapted.path, [f"data.source={others}", f"data.class_names={names}"])
    measured = json.loads(text[: text.rindex("}") + 1])
    table = pq.read_table(text.splitlines()[-1].removeprefix("Predictions: ")).to_pydict()
    assert set(table["predicted"]) <= set(names)
    right = sum(names[int(label)] == said for label, said in zip(table["label"], table["predicted"], strict=True))
    assert measured["adapted"]["top1"] == pytest.approx(100 * right / 50)
    assert json.loads(adapted.read_bytes("metrics.json"))["class_names"] == list(map(str, range(10)))


def test_what_belongs_to_the_run_cannot_be_changed(adapted: Run) -> None:
    with pytest.raises(UserError, match="belongs to the run"):
        predict(adapted.path, ["model.prompt=visual"])
    for setting in ("fpl.shots=4", "train.epochs=9", "seed=3", "method=cpl"):
        with pytest.raises(UserError, match=setting.split("=")[0]):
            predict(adapted.path, [setting])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished run"):
        predict(str(tmp_path), [])
