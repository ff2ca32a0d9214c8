"""What a person brings instead of clean labels, through whole runs: nothing is silently wrong."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data import digits
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.run.plan import describe_plan, make_plan
from raydapt.run.prediction import evaluate_on
from raydapt.settings.config import Config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def write(path: Path, labels: list[str | None], splits: list[str] | None = None, bad: frozenset[int] = frozenset()):
    """The first digits with any labels, uncompressed, so that a correction leaves the footer as it is."""
    images = [b"broken" if i in bad else image for i, image in enumerate(digits.load().images[: len(labels)])]
    columns = {"image": images, "label": pa.array(labels, pa.string())} | ({"split": splits} if splits else {})
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False)


def job(tmp_path: Path, *overrides: str) -> Config:
    places = [f"runs={tmp_path}/runs", f"store={tmp_path}/store", f"data.source={tmp_path}/x.parquet"]
    return load_config(None, [*places, "method=zero_shot", "ray.progress=false", "data.class_names=digits", *overrides])


def metrics_of(config: Config) -> dict:
    return json.loads(pipeline.run(config).read_bytes("metrics.json"))


def true_labels(n: int) -> list[str | None]:
    return list(digits.load().labels[:n])


def test_a_corrected_label_counts_and_no_pixel_is_encoded_again(tmp_path: Path) -> None:
    wrong = [str((int(label) + 1) % 10) for label in true_labels(60)]
    write(tmp_path / "x.parquet", wrong)
    before = metrics_of(job(tmp_path))
    run = pipeline.run(job(tmp_path))
    write(tmp_path / "x.parquet", true_labels(60))
    after = metrics_of(job(tmp_path))
    assert after["stages"]["features"]["reused"]
    assert after["adapted"]["top1"] > before["adapted"]["top1"] + 30
    assert json.loads(evaluate_on(run.path, []).split("\nPredictions")[0])["adapted"] == after["adapted"]


def test_labels_that_are_no_class_are_told_or_refuse_the_measure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = true_labels(300)
    labels[7] = "seven"
    write(tmp_path / "x.parquet", labels)
    few = pipeline.run(job(tmp_path))
    metrics = json.loads(few.read_bytes("metrics.json"))
    assert metrics["adapted"]["top1"] is not None
    assert metrics["labels"]["unknown"] == [{"label": "seven", "images": 1, "nearest": None}]
    sentence = "1 of 300 labelled images have a label that is no class"
    assert sentence in caplog.text
    assert sentence in (Path(few.path) / "report.html").read_text()
    labels[:100] = [f"{label}." if i % 2 else "x" for i, label in enumerate(labels[:100])]
    labels[:50] = ["x"] * 50
    write(tmp_path / "x.parquet", labels)
    many = pipeline.run(job(tmp_path))
    assert json.loads(many.read_bytes("metrics.json"))["adapted"]["top1"] is None
    assert "nothing is measured" in caplog.text
    assert "nothing is measured" in (Path(many.path) / "report.html").read_text()
    with pytest.raises(UserError, match="nothing is measured"):
        evaluate_on(many.path, [])
    with pytest.raises(UserError, match="nothing is measured"):
        pipeline.run(job(tmp_path, "data.paradigm=ssl"))


def test_labels_from_1_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [str(i % 3 + 1) for i in range(30)])
    names = "data.class_names=[daisy,rose,tulip]"
    with pytest.raises(UserError, match=r"data\.first_label=1"):
        pipeline.run(job(tmp_path, names))
    stated = metrics_of(job(tmp_path, names, "data.first_label=1"))
    assert [row["images"] for row in stated["evaluation"]["per_class"]] == [10, 10, 10]


def test_no_test_image_that_can_be_read_is_no_measure_of_the_others(tmp_path: Path) -> None:
    splits = ["test" if i % 3 == 0 else "train" for i in range(60)]
    write(tmp_path / "x.parquet", true_labels(60), splits, bad=frozenset(range(0, 60, 3)))
    with pytest.raises(UserError, match="none of the 20 test images can be read"):
        pipeline.run(job(tmp_path, "data.max_error_share=1"))


def test_a_split_that_is_not_used_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "x.parquet", true_labels(60), ["val" if i % 3 == 0 else "train" for i in range(60)])
    metrics = metrics_of(job(tmp_path))
    assert metrics["evaluation"]["images"] == 40
    assert "'val' (20 images)" in metrics["notes"][0]
    assert "'val' (20 images)" in caplog.text


@pytest.mark.parametrize("name", ["fer2013", "svhn"])
def test_a_finished_run_of_a_named_set_is_measured_as_it_was(tmp_path: Path, name: str) -> None:
    from raydapt.data.named_sets import named_set

    known = named_set(name)
    assert known is not None
    write(tmp_path / "x.parquet", [known.labels[i % len(known.labels)] for i in range(40)])
    run = pipeline.run(job(tmp_path, f"data.class_names={name}"))
    at_run = json.loads(run.read_bytes("metrics.json"))
    assert at_run["labels"]["unknown"] == []
    later = json.loads(evaluate_on(run.path, []).split("\nPredictions")[0])
    assert later["images"] == 40
    assert np.isclose(later["adapted"]["top1"], at_run["adapted"]["top1"])


def test_training_images_that_cannot_be_read_are_told_from_splits_that_are_missing(tmp_path: Path) -> None:
    splits = ["train"] * 6 + ["test"] * 6
    write(tmp_path / "x.parquet", true_labels(12), splits, bad=frozenset(range(6)))
    with pytest.raises(
        UserError, match=r"train_splits=\['train'\] leaves .*none of their images can be read \(not_an_im"
    ):
        pipeline.run(job(tmp_path, "data.max_error_share=1"))
    write(tmp_path / "x.parquet", true_labels(12), ["trainval"] * 6 + ["test"] * 6)
    with pytest.raises(UserError, match=r"splits test, trainval: set data\.train_splits=\[trainval\]"):
        pipeline.run(job(tmp_path))


def test_classes_called_by_wordnet_ids_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "x.parquet", ["n01440764", "n01443537"] * 4)
    pipeline.run(job(tmp_path, "data.class_names=auto"))
    assert "called by numbers ('n01440764', 'n01443537', …), which say nothing to the model" in caplog.text
    planned = describe_plan(make_plan(job(tmp_path, "data.class_names=auto")))
    assert "note      The classes are called by numbers" in planned
