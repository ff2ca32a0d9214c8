"""AiR as a whole run on the built-in digits with the embedded models: LoRA, synthesis, features, learning, report."""

import json
import re
from pathlib import Path

import pytest

from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.run.prediction import evaluate_on
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from raydapt.verbs.sample_curve import sample_curve

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

QUICK = [
    "method=air",
    "cpl.rounds=2",
    "train.max_steps_per_round=5",
    "lora.steps=2",
    "lora.images_per_class=2",
    "synthesis.samples_per_class=4",
    "synthesis.batch_size=2",
    "synthesis.steps=2",
    "synthesis.guidance=1",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("air")
    return load_config(None, [*QUICK, f"runs={folder}/runs", f"store={folder}/store"])


@pytest.fixture(scope="module")
def finished(job: Config) -> Run:
    plan = pipeline.describe(job)
    assert all(f"stage     {kind}" in plan for kind in ("features", "lora", "synthetic"))
    assert plan.count("to be made") == 3
    return pipeline.run(job)


def test_one_command_makes_everything_and_shows_it(job: Config, finished: Run) -> None:
    metrics = json.loads(finished.read_bytes("metrics.json"))
    assert metrics["synthetic"]["images"] == 40
    assert [entry["images"] for entry in metrics["synthetic"]["per_class"]] == [4] * 10
    assert {"features", "lora", "synthetic", "synthetic_features"} <= metrics["stages"].keys()
    assert all(set(entry["classifiers"]) == {"text", "images", "both"} for entry in metrics["rounds"])
    assert metrics["rounds"][0]["classifiers"]["text"] > 70  # zero-shot
    report = Path(finished.file("report.html")).read_text()
    assert '<section id="synthetic">' in report
    assert report.count('alt="synthetic image of') == 40
    plan = pipeline.describe(job)
    assert "to be made" not in plan
    assert re.search(r"synthetic [0-9a-f]{16}: there", plan)


def test_smaller_counts_are_cut_from_the_same_images(job: Config, finished: Run) -> None:
    record, points = sample_curve(job, [0, 2, 4])
    assert [point["samples_per_class"] for point in points] == [0, 2, 4]
    assert points[2]["run"] == finished.name
    runs = Path(finished.path).parent
    for point in points[:2]:
        metrics = json.loads((runs / point["run"] / "metrics.json").read_text())
        stages = metrics["stages"]
        assert all(stage["reused"] for stage in stages.values())
        assert metrics.get("synthetic", {}).get("images", 0) == 10 * point["samples_per_class"]
    assert record.exists("curve.svg")


def test_the_learned_prompt_needs_no_synthetic_images_for_other_classes(finished: Run) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    store = Path(finished.path).parents[1] / "store"
    before = sorted(store.glob("*/*"))
    text = evaluate_on(finished.path, [f"data.class_names={names}"])
    assert json.loads(text[: text.rindex("}") + 1])["adapted"]["top1"] > 0
    assert sorted(store.glob("*/*")) == before
