"""Whole runs on the built-in digits with the embedded model: real stage, real learning, real report."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.table import GROUPS, setting_groups
from raydapt.run import pipeline
from raydapt.settings.config import Config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

QUICK = ["train.epochs=2", "train.batch_size=64", "grip.rounds=2", "cpl.rounds=2", "train.max_steps_per_round=20"]
QUICK += ["fair.crops=2"]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pipeline")
    return [f"runs={folder}/runs", f"store={folder}/store"]


def job(places: list[str], *overrides: str) -> Config:
    method = next((item.partition("=")[2] for item in overrides if item.startswith("method=")), "cpl")
    used = setting_groups(method, {})
    quick = [item for item in QUICK if item.split(".")[0] not in GROUPS or item.split(".")[0] in used]
    return load_config(None, [*places, *quick, *overrides])


def metrics_of(run: object) -> dict:
    return json.loads(run.read_bytes("metrics.json"))


@pytest.mark.parametrize("method", ["zero_shot", "ensemble", "wca", "fpl", "grip", "cpl", "fair", "transduct"])
def test_every_method_goes_from_images_to_a_report(places: list[str], method: str) -> None:
    run = pipeline.run(job(places, f"method={method}"))
    metrics = metrics_of(run)
    folder = Path(run.path)
    assert metrics["adapted"]["top1"] > 30
    assert metrics["evaluation"]["images"] == pq.read_metadata(folder / "predictions.parquet").num_rows
    assert not metrics["evaluation"]["transductive"]
    assert (folder / "report.html").stat().st_size > 10_000
    predictions = pq.read_table(folder / "predictions.parquet").to_pydict()
    names = dict(zip(range(10), metrics["class_names"], strict=True))
    right = [
        names[int(label)] == said for label, said in zip(predictions["label"], predictions["predicted"], strict=True)
    ]
    assert metrics["adapted"]["top1"] == pytest.approx(100 * np.mean(right))
    if method in ("fpl", "grip", "cpl"):
        assert [r["round"] for r in metrics["rounds"]] == list(range(1, 2 if method == "fpl" else 3))
        assert metrics["pseudo_labels"]["selected"] > 0
        assert (folder / "metrics.jsonl").read_text().count("\n") >= len(metrics["rounds"])
        assert list((folder / "tensorboard").iterdir())
    if method == "zero_shot":
        assert metrics["adapted"] == metrics["zero_shot"]
    if method == "fair":
        assert sum(row["images"] for row in metrics["alignment"]["weights"]) == metrics["alignment"]["examined"] == 512
        assert all(row["degrees"] > 0 for row in metrics["alignment"]["anchors"])
        assert pq.read_metadata(folder / "crops.parquet").num_rows == 12
        assert "degrees moved" in (folder / "report.html").read_text()


@pytest.mark.parametrize("prompt", ["text", "visual", "both"])
@pytest.mark.parametrize("paradigm", ["ssl", "trzsl"])
def test_paradigms_with_every_prompt(places: list[str], paradigm: str, prompt: str) -> None:
    overrides = ["method=cpl", f"data.paradigm={paradigm}", f"model.prompt={prompt}", "train.max_steps_per_round=4"]
    metrics = metrics_of(pipeline.run(job(places, *overrides)))
    assert metrics["adapted"]["top1"] is not None
    if paradigm == "trzsl":
        adapted = metrics["adapted"]
        seen, unseen = adapted["seen"], adapted["unseen"]
        expected = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
        assert adapted["harmonic_mean"] == pytest.approx(expected)


def test_a_finished_run_is_not_run_again(places: list[str]) -> None:
    config = job(places, "method=fpl", "seed=5")
    first = pipeline.run(config)
    before = (Path(first.path) / "metrics.json").stat().st_mtime_ns
    assert pipeline.run(config).path == first.path
    assert (Path(first.path) / "metrics.json").stat().st_mtime_ns == before
    pipeline.run(config, overwrite=True)
    assert (Path(first.path) / "metrics.json").stat().st_mtime_ns > before


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(places: list[str]) -> None:
    def weights(name: str, seed: int) -> np.ndarray:
        run = pipeline.run(job(places, "method=cpl", f"name={name}", f"seed={seed}"))
        tensors = load_file(Path(run.path) / "checkpoint" / "state.safetensors")
        return next(tensor for key, tensor in tensors.items() if key.startswith("method."))

    first = weights("same-a", 3)
    np.testing.assert_array_equal(first, weights("same-b", 3))
    assert not np.array_equal(first, weights("other", 4))


def test_a_folder_of_other_settings_is_refused(places: list[str]) -> None:
    pipeline.run(job(places, "method=zero_shot", "name=mine"))
    with pytest.raises(UserError, match="other settings"):
        pipeline.run(job(places, "method=ensemble", "name=mine"))


def test_the_plan_tells_what_is_there(places: list[str]) -> None:
    config = job(places, "method=cpl", "model.prompt=visual", "data.limit=200")
    before = pipeline.describe(config)
    assert "features" in before
    assert before.count("to be made") == 2
    pipeline.features(config)
    after = pipeline.describe(config)
    assert after.count("to be made") == 1
    assert "there (200 rows)" in after


def test_shuffled_labels_give_the_same_weights_bit_for_bit(places: list[str], tmp_path: Path) -> None:
    import pyarrow as pa

    from raydapt.data.sources import read_part, resolve_source
    from raydapt.settings.groups import DataSettings

    source = resolve_source("digits", rows_per_part=2000)
    table = read_part(source.parts[0], DataSettings())
    rng = np.random.default_rng(0)
    weights = []
    for name in ("true", "shuffled"):
        labels = np.array(table["label"].to_pylist())
        if name == "shuffled":
            rng.shuffle(labels)
        columns = {"image": table["image"], "label": pa.array(labels), "split": table["split"]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        run = pipeline.run(
            job(places, "method=cpl", f"data.source={tmp_path / name}.parquet", "data.class_names=digits")
        )
        weights.append(load_file(Path(run.path) / "checkpoint" / "state.safetensors"))
        top1 = metrics_of(run)["adapted"]["top1"]
        assert (top1 > 30) == (name == "true")
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "given"), [("cpl", []), ("fair", ["fair.layer_norms=false"])])
def test_two_workers_agree_with_one(places: list[str], method: str, given: list[str]) -> None:
    def top1(workers: int) -> float:
        config = job(places, f"method={method}", *given, f"train.workers={workers}", f"name=workers-{method}-{workers}")
        return metrics_of(pipeline.run(config))["adapted"]["top1"]

    assert top1(2) == pytest.approx(top1(0), abs=1.0)
