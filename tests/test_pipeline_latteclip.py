"""LatteCLIP from images to report, prediction and export, and that no label has a part in it."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from raydapt import pipeline, prediction
from raydapt.config import load_config
from raydapt.errors import UserError
from raydapt.export import export
from raydapt.plan_latteclip import check_latteclip, latteclip_learns
from tests.test_pipeline_coreg import digits_without_truth

JOB = Path(__file__).parents[1] / "jobs" / "latteclip.yaml"


def job(*overrides):
    return load_config(JOB, ["data.class_names=digits", "ray.progress=false", *overrides])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_is_reported_predicted_exported_and_blind_to_labels(tmp_path):
    weights = []
    places = [f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}"]
    lengths = ["train.batch_size=50", "train.learning_rate=1e-3", "train.epochs=2", "latteclip.tune=ln"]
    for shuffled in (False, True):
        source = digits_without_truth(tmp_path, shuffled)
        run = pipeline.run(job(f"data.source={source}", *places, *lengths))
        weights.append(load_file(Path(run.path) / "checkpoint" / "state.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key])
    metrics = json.loads(run.read_bytes("metrics.json"))
    assert metrics["prompt"] is None
    assert [row["epoch"] for row in metrics["latteclip"]["epochs"]] == [1, 2]
    assert metrics["latteclip"]["epochs"][0]["template"] == pytest.approx(1.0)
    assert "Texts and prototypes" in (Path(run.path) / "report.html").read_text()
    predictions = pq.read_table(prediction.predict(run.path, []))
    assert predictions.num_rows == 240
    assert (Path(export(run.path, str(tmp_path / "model"))) / "model.onnx").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.paradigm=ssl", "without any label; set it to ul"),
        ("latteclip.use_template_caption=false", "leaves no text"),
        ("latteclip.use_zeroshot_pseudolabel=false", "nothing to learn"),
    ],
)
def test_what_cannot_work_is_one_sentence(override, words):
    off = "latteclip.use_finetune_pseudolabel=false" if "zeroshot" in override else "seed=0"
    with pytest.raises(UserError, match=words):
        check_latteclip(job(override, off))


def test_the_plan_says_what_is_learned():
    settings = job("latteclip.tune=ln", "latteclip.towers=image").latteclip
    assert latteclip_learns(settings) == "LayerNorms of the image tower"
