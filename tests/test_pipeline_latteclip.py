"""LatteCLIP from images to report, prediction and export, and that no label has a part in it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.latteclip.resolve import check_latteclip, latteclip_learns
from raydapt.methods.latteclip.settings import LatteclipSettings
from raydapt.methods.table import spec_of
from raydapt.run import pipeline, prediction
from raydapt.run.plan import make_plan
from raydapt.verbs.export import export
from tests.test_pipeline_coreg import digits_without_truth

JOB = Path(__file__).parents[1] / "jobs" / "latteclip.yaml"


HOSTILE = ["<script>alert(1)</script> seven", "word " * 2000, None, "", "一个手写的三", "three thick strokes\nand more"]


def job(*overrides):
    server = ["caption.engine=openai", "caption.base_url=http://127.0.0.1:9/v1", "caption.model=none"]
    return load_config(JOB, ["data.class_names=digits", "ray.progress=false", *server, *overrides])


def write_captions(config):
    """Captions where a captioner would have left them, so that none is asked."""
    plan = make_plan(config)
    recipes = [spec.recipe for spec in plan.artefacts if spec.kind in ("image_captions", "group_captions")]
    assert [recipe.kind for recipe in recipes] == ["image_captions", "group_captions"]
    for recipe in recipes:
        artefact = plan.store.artefact_of(recipe)
        texts = [HOSTILE[i % len(HOSTILE)] for i in range(240)]
        artefact.commit_part(0, pa.table({"caption": pa.array(texts, pa.string())}))
        artefact.finish(recipe, [0], {}, {})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_is_reported_predicted_exported_and_blind_to_labels(tmp_path):
    weights = []
    places = [f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}"]
    captions = ["latteclip.use_image_caption=true", "latteclip.use_batch_caption=true"]
    lengths = ["train.batch_size=50", "train.learning_rate=1e-3", "train.epochs=2", "latteclip.tune=ln"]
    for shuffled in (False, True):
        config = job(f"data.source={digits_without_truth(tmp_path, shuffled)}", *places, *captions, *lengths)
        write_captions(config)
        run = pipeline.run(config)
        weights.append(load_file(Path(run.path) / "checkpoint" / "state.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key])
    metrics = json.loads(run.read_bytes("metrics.json"))
    assert metrics["prompt"] is None
    assert [row["epoch"] for row in metrics["latteclip"]["epochs"]] == [1, 2]
    assert all(metrics["latteclip"]["epochs"][0][source] > 0 for source in ("template", "image", "group"))
    assert metrics["latteclip"]["captions"]["images"]["missing"] == 66  # of 200 to learn from, a third
    report = (Path(run.path) / "report.html").read_text()
    assert "Texts and prototypes" in report
    assert "<script" not in report
    predictions = pq.read_table(prediction.predict(run.path, []))
    assert predictions.num_rows == 240
    assert (Path(export(run.path, str(tmp_path / "model"))) / "model.onnx").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([f"latteclip.use_{kind}_caption=false" for kind in ("template", "image", "batch")], "leaves no text"),
        ([f"latteclip.use_{kind}_pseudolabel=false" for kind in ("finetune", "zeroshot")], "nothing to learn"),
    ],
)
def test_what_cannot_work_is_one_sentence(overrides, words):
    with pytest.raises(UserError, match=words):
        check_latteclip(job(*overrides))


def test_the_plan_says_what_is_learned():
    settings = job("latteclip.tune=ln", "latteclip.towers=image").of(LatteclipSettings)
    assert latteclip_learns(settings) == "LayerNorms of the image tower"


def test_labels_that_could_not_be_used_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.paradigm='ssl' is nothing that latteclip learns with: set it to ul"):
        spec_of("latteclip").check_paradigm(job("data.paradigm=ssl"))
