"""Co-Reg from images to report, prediction and export, and that no label has a part in it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from raydapt.artefacts.partial_labels import load_partial_labels
from raydapt.data.sources import read_part, resolve_source
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline, plan, prediction
from raydapt.run.plan import make_plan
from raydapt.settings.groups import DataSettings
from raydapt.train.checkpoint import from_bytes
from raydapt.verbs.export import export

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
JOB = Path(__file__).parents[1] / "jobs" / "coreg.yaml"


def job(folder, source, *overrides):
    return load_config(
        JOB,
        [
            f"data.source={source}",
            "data.class_names=digits",
            f"store={folder / 'store'}",
            f"runs={folder / 'runs'}",
            "train.epochs=3",
            "coreg.warmup_epochs=1",
            "coreg.start_contrast=1",
            "coreg.image_size_px=16",
            "ray.progress=false",
            *overrides,
        ],
    )


def digits_without_truth(folder, shuffled):
    """240 digits, with their labels or with somebody else's."""
    table = read_part(resolve_source("digits", rows_per_part=2000).parts[0], DataSettings()).slice(0, 240)
    labels = np.array(table["label"].to_pylist())
    if shuffled:
        np.random.default_rng(0).shuffle(labels)
    split = ["train"] * 200 + ["test"] * 40
    path = folder / f"{'shuffled' if shuffled else 'true'}.parquet"
    pq.write_table(pa.table({"image": table["image"], "label": pa.array(labels), "split": split}), path)
    return path


def test_a_run_is_reported_predicted_exported_and_blind_to_labels(tmp_path):
    weights = []
    for shuffled in (False, True):
        run = pipeline.run(job(tmp_path, digits_without_truth(tmp_path, shuffled)))
        weights.append(load_file(Path(run.path) / "checkpoint" / "state.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key])
    metrics = json.loads(run.read_bytes("metrics.json"))
    assert {"features", "pixels", "partial_labels"} <= metrics["stages"].keys()
    assert metrics["coreg"]["annotation"]["candidates"] > 1
    assert len(metrics["coreg"]["students"]) == 2
    small, large = (metrics["coreg"]["deployment"][name]["parameters"] for name in ("student", "clip_image_tower"))
    assert small < large / 2
    assert "Partial labels and students" in (Path(run.path) / "report.html").read_text()
    predictions = pq.read_table(prediction.predict(run.path, []))
    assert predictions.num_rows == 240
    card = (Path(export(run.path, str(tmp_path / "model"))) / "README.md").read_text()
    assert "two student networks" in card


def answers_of(run):
    """What a finished run says of all images, in the order of the source."""
    return pq.read_table(prediction.predict(run.path, []))["predicted"].to_pylist()


def test_adapted_runs_vote_in_place_of_templates(tmp_path):
    source, names = digits_without_truth(tmp_path, shuffled=False), [str(digit) for digit in range(10)]
    places = [f"data.source={source}", "data.class_names=digits", "ray.progress=false"]
    places += [f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}"]
    cpl = ["train.epochs=1", "cpl.rounds=1", "train.max_steps_per_round=5", "train.learning_rate=0.5", "guard=off"]
    given = (["method=zero_shot"], ["method=cpl", *cpl])
    runs = [pipeline.run(load_config(None, [*places, *settings])) for settings in given]
    voters = f"coreg.voters=[{', '.join(run.path for run in runs)}]"
    config = job(tmp_path, source, voters)
    run = pipeline.run(config)
    partial = load_partial_labels(partial_labels_of(config))
    said = [answers_of(voter) for voter in runs]
    assert said[0] != said[1]
    for row, candidates in enumerate(partial.candidate_NC.toarray().tolist()):
        voted = {names.index(answers[row]) for answers in said}
        assert {c for c, there in enumerate(candidates) if there} == voted
    metrics = json.loads(run.read_bytes("metrics.json"))
    assert metrics["coreg"]["annotation"]["candidates"] <= 2
    templates_vote = job(tmp_path, source)
    assert partial_labels_of(config).fingerprint != partial_labels_of(templates_vote).fingerprint
    with pytest.raises(UserError, match=r"coreg.voters: run .* tells 10 classes apart that are not the 2"):
        pipeline.describe(job(tmp_path, source, voters, "data.class_names=[a, b]"))
    with pytest.raises(UserError, match="nowhere' is not a finished run"):
        pipeline.describe(job(tmp_path, source, "coreg.voters=[nowhere]"))
    shutil.rmtree(runs[0].path)  # a run outlives its voters
    assert len(answers_of(run)) == 240
    assert pipeline.run(job(tmp_path, source, f"coreg.voters=[{run.path}]")).exists("metrics.json")


def partial_labels_of(config):
    """The artefact of a job's partial labels."""
    plan = make_plan(config)
    return plan.store.artefact_of(next(s.recipe for s in plan.artefacts if s.name == "partial_labels"))


def test_a_run_that_was_given_labels_may_not_vote(tmp_path):
    source = digits_without_truth(tmp_path, shuffled=False)
    places = [f"data.source={source}", "data.class_names=digits", "ray.progress=false"]
    places += [f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}"]
    run = pipeline.run(load_config(None, [*places, "method=zero_shot", "data.paradigm=ssl"]))
    with pytest.raises(UserError, match=r"was given labels \(data.paradigm=ssl\)"):
        pipeline.describe(job(tmp_path, source, f"coreg.voters=[{run.path}]"))


def test_lengths_that_leave_no_co_training_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"coreg.warmup_epochs=3 leaves nothing of train.epochs=3"):
        pipeline.describe(job(tmp_path, "digits", "coreg.warmup_epochs=3"))


def test_a_gpu_for_each_student_needs_two_of_them(tmp_path):
    with pytest.raises(UserError, match="a worker sees 0 GPUs and needs two"):
        pipeline.run(job(tmp_path, digits_without_truth(tmp_path, shuffled=False), "coreg.gpu_per_student=true"))


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_that_do_not_fit_in_memory_are_learned_from_and_predicted(tmp_path, monkeypatch, workers):
    """40 kB of memory for 230 kB of pixels, in this process and on two workers of Ray Train."""
    source = digits_without_truth(tmp_path, shuffled=False)
    settings = ("features.rows_per_part=16", "train.cache_gb=4e-5", f"train.workers={workers}", "guard=off")
    with pytest.raises(UserError, match=r"train.cache_gb=4e-05 is too little .*: give 0.01 or more"):
        make_plan(job(tmp_path, source, *settings))
    monkeypatch.setattr(plan, "LEAST_CACHE_GB", 0)
    fits, named = (make_plan(job(tmp_path, source, *settings, f"train.cache_gb={gb}")).run_name for gb in (1, 2))
    assert fits == named
    assert make_plan(job(tmp_path, source, *settings)).run_name != fits
    run = pipeline.run(job(tmp_path, source, *settings))
    state = from_bytes(run.read_bytes("checkpoint/state.safetensors"))
    assert state.finished
    assert np.isfinite([line["loss"] for line in state.lines]).all()
    answers = pq.read_table(prediction.predict(run.path, []))["predicted"].to_pylist()
    in_memory = pq.read_table(prediction.predict(run.path, ["train.cache_gb=1"]))["predicted"].to_pylist()
    assert answers == in_memory
    assert workers or len(set(answers)) > 1  # on two workers three epochs teach one class
