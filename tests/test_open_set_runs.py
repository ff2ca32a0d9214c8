"""Images of none of the names in whole runs: told, kept out, answered, and measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from sklearn.metrics import roc_auc_score

from raydapt.data.class_features import read_class_features
from raydapt.data.splits import LabelSplit
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.open_set import NONE, fit_rule
from raydapt.run import pipeline
from raydapt.run.open_set import FILE, OpenSet
from raydapt.run.plan import make_plan
from raydapt.run.prediction import measure, predict
from raydapt.settings.config import Config
from raydapt.settings.groups import DataSettings
from raydapt.train.job import DIVISION
from raydapt.verbs.threshold import threshold
from tests.data.features import unit, write

NAMES, WIDTH = ["cat", "dog", "sea"], 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 features around three named directions and 80 around one without a name, far from all texts."""
    folder, generator = tmp_path_factory.mktemp("open_set"), np.random.default_rng(0)
    centre_KD = unit(generator.standard_normal((4, WIDTH)))
    class_N = np.concatenate([np.arange(240) % 3, np.full(80, 3)])
    feature_ND = unit(centre_KD[class_N] + 0.1 * generator.standard_normal((320, WIDTH))).astype(np.float32)
    labels = [[*NAMES, "blank"][c] for c in class_N]
    splits = np.where(np.arange(320) % 4 < 3, "train", "test").tolist()
    write(folder / "x.parquet", feature_ND, label=labels, split=splits)
    write(folder / "classes.parquet", centre_KD[:3].astype(np.float32), name=NAMES)
    return folder


def job(folder: Path, method: str, name: str, *overrides: str) -> Config:
    places = [f"runs={folder}/runs", f"store={folder}/store", "ray.progress=false", f"name={name}"]
    given = [f"data.source={folder}/x.parquet", f"data.class_features={folder}/classes.parquet"]
    quick = [] if method in ("transduct", "zero_shot") else ["train.epochs=1"]
    return load_config(None, [f"method={method}", *places, *given, "data.other_labels=[blank]", *quick, *overrides])


@pytest.fixture(scope="module")
def told(folder: Path) -> Path:
    return Path(pipeline.run(job(folder, "zero_shot", "told")).path)


@pytest.fixture(scope="module")
def rejecting(folder: Path) -> Path:
    return Path(pipeline.run(job(folder, "transduct", "rejecting", "data.reject=true")).path)


def test_a_run_warns_and_keeps_every_image(told: Path) -> None:
    metrics = json.loads((told / "metrics.json").read_text())
    found = metrics["open_set"]
    assert found["suspected"]
    assert found["share"] == pytest.approx(0.25, abs=0.05)
    assert not found["rejects"]
    assert (found["left_out"], found["others_rejected"]) == (0, 0.0)
    assert any("belong to none of the names" in note for note in metrics["notes"])
    assert "belong to none of the names" in (told / "report.html").read_text()
    table = pq.read_table(told / "predictions.parquet")
    assert table["predicted_or_none"].to_pylist() == table["predicted"].to_pylist()
    assert (metrics["labels"]["labelled"], metrics["labels"]["unknown_images"]) == (60, 0)
    assert metrics["zero_shot"]["top1"] > 95


def test_its_probabilities_are_measured_and_stay_the_same_for_other_images(folder: Path, told: Path) -> None:
    table = pq.read_table(told / "predictions.parquet")
    other_T = np.array([label == "blank" for label in table["label"].to_pylist()])
    auroc = roc_auc_score(other_T, table["none_of_these"].to_numpy())
    assert json.loads((told / "metrics.json").read_text())["open_set"]["auroc"] == pytest.approx(auroc)
    assert auroc > 0.95
    features = np.stack(pq.read_table(folder / "x.parquet")["feature"].to_pylist()).astype(np.float32)
    train_N = np.array([s == "train" for s in pq.read_table(folder / "x.parquet")["split"].to_pylist()])
    text_CD = torch.from_numpy(read_class_features(str(folder / "classes.parquet"), None).feature_MD)
    feature_AD, row_A = torch.from_numpy(features), torch.arange(320)
    rule = fit_rule(feature_AD, text_CD, row_A[train_N])
    expected = rule.none_probability(feature_AD, text_CD, row_A[~train_N])
    np.testing.assert_allclose(table["none_of_these"].to_numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)
    every = pq.read_table(predict(str(told), []))
    by_id = dict(zip(every["id"].to_pylist(), every["none_of_these"].to_pylist(), strict=True))
    assert every.num_rows == 320
    for id_, probability in zip(table["id"].to_pylist(), table["none_of_these"].to_pylist(), strict=True):
        assert by_id[id_] == pytest.approx(probability, abs=1e-5)


def test_rejected_images_are_not_learned_from_and_are_answered_so(rejecting: Path) -> None:
    metrics = json.loads((rejecting / "metrics.json").read_text())
    found, division = metrics["open_set"], load((rejecting / DIVISION).read_bytes())
    assert found["rejects"]
    assert 50 <= found["left_out"] <= 75
    assert len(division["unlabelled"]) == len(division["row"]) == 240 - found["left_out"]
    assert int((division["row"] >= 240).sum()) < 10  # the images without a name stand last
    assert metrics["transduct"]["images"] == len(division["row"])
    table = pq.read_table(rejecting / "predictions.parquet")
    assert set(table["predicted"].to_pylist()) <= set(NAMES)
    none_T = table["none_of_these"].to_numpy() > 0.5
    assert [answer == NONE for answer in table["predicted_or_none"].to_pylist()] == none_T.tolist()
    truth = [NONE if label == "blank" else label for label in table["label"].to_pylist()]
    right = np.mean([a == b for a, b in zip(table["predicted_or_none"].to_pylist(), truth, strict=True)])
    assert found["top1_with_none"] == pytest.approx(100 * right)
    assert right > 0.9
    other_T = np.array(truth) == NONE
    assert found["others_rejected"] == pytest.approx(100 * none_T[other_T].mean())
    assert found["classes_rejected"] == pytest.approx(100 * none_T[~other_T].mean())
    assert any("were kept out" in note for note in metrics["notes"])


def test_what_is_rejected_is_not_taken_over(rejecting: Path) -> None:
    chosen = threshold(str(rejecting), precision=0.5)
    none = dict(zip(*(pq.read_table(rejecting / "predictions.parquet")[c].to_pylist() for c in ("id", "none_of_these")),
                    strict=True))  # fmt: skip
    taken = [row for row in chosen.table.to_pylist() if row["taken"]]
    assert taken
    assert all(none[row["id"]] <= 0.5 for row in taken)


def test_other_images_are_measured_the_same_way(told: Path) -> None:
    found, _ = measure(str(told), ["data.reject=true"])
    assert found["open_set"]["others_rejected"] > 90
    assert found["open_set"]["auroc"] > 0.95
    assert found["images"] == 60


WITHOUT_CAPTIONS = ["latteclip.use_image_caption=false", "latteclip.use_batch_caption=false"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cpl", "fair", "latteclip"])
def test_every_method_learns_from_the_kept_images_alone(folder: Path, method: str) -> None:
    own = {"cpl": [], "fair": ["fair.crops=0"], "latteclip": ["latteclip.tune=residual", *WITHOUT_CAPTIONS]}[method]
    record = pipeline.run(job(folder, method, f"{method}-0.25", "data.reject=0.25", *own))
    metrics = record.read_json("metrics.json")
    assert metrics["open_set"]["left_out"] == 60
    row_N = load(record.read_bytes(DIVISION))["row"]
    assert len(row_N) == 180
    if method == "cpl":
        given = set(pq.read_table(f"{record.path}/pseudo_labels.parquet")["id"].to_pylist())
        id_A = pq.read_table(predict(record.path, []))["id"].to_pylist()  # in the order of the source
        assert given
        assert given <= {id_A[row] for row in row_N.tolist()}


def test_labelled_images_are_never_kept_out() -> None:
    generator = torch.Generator().manual_seed(0)
    feature_ND = torch.nn.functional.normalize(torch.randn(200, 8, generator=generator), dim=1)
    text_CD = feature_ND[:3]
    rule = fit_rule(feature_ND, text_CD, torch.arange(200), share=0.5)
    finding = OpenSet(data=DataSettings(reject=0.5), rule=rule, feature_AD=feature_ND, text_CD=text_CD)
    out_N = finding.rejected(torch.arange(200))
    labelled_L = np.flatnonzero(out_N.numpy())[::2]
    split = LabelSplit(
        labelled_L=labelled_L,
        unlabelled_U=np.setdiff1d(np.arange(200), labelled_L),
        candidate_classes=(0, 1, 2),
        seen=(1,),
        unseen=(0, 2),
    )
    row_N, kept = finding.kept(torch.arange(200), split)
    assert row_N[torch.from_numpy(kept.labelled_L)].tolist() == labelled_L.tolist()
    expected = [i for i in range(200) if i not in set(labelled_L.tolist()) and not out_N[i]]
    assert row_N[torch.from_numpy(kept.unlabelled_U)].tolist() == expected
    assert (kept.seen, kept.unseen, kept.candidate_classes) == ((1,), (0, 2), (0, 1, 2))
    untouched = replace(finding, data=DataSettings())
    assert untouched.kept(torch.arange(200), split)[1] is split


def test_a_class_cannot_stand_for_none(folder: Path) -> None:
    with pytest.raises(UserError, match="'dog' is the class 'dog'"):
        make_plan(job(folder, "zero_shot", "x", "data.other_labels=[dog]"))


def test_declared_labels_are_no_class_names(folder: Path) -> None:
    for name in [*NAMES, "blank"]:
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((32, 32, 3), 40 * i + len(name), np.uint8)).save(folder / f"photos/{name}/{i}.png")
    plan = make_plan(load_config(None, [f"data.source={folder}/photos", "data.other_labels=[blank]"]))
    assert plan.classes.names == tuple(NAMES)


def test_few_images_tell_nothing(folder: Path) -> None:
    record = pipeline.run(job(folder, "zero_shot", "few", "data.limit=40", "data.reject=true"))
    metrics = record.read_json("metrics.json")
    assert not record.exists(FILE)
    assert metrics["open_set"]["share"] is None
    assert any("has no effect" in note for note in metrics["notes"])
    table = pq.read_table(f"{record.path}/predictions.parquet")
    assert table["none_of_these"].null_count == table.num_rows
    assert table["predicted_or_none"].to_pylist() == table["predicted"].to_pylist()


@pytest.mark.parametrize("value", ["1.5", "perhaps"])
def test_a_share_beyond_one_is_refused(folder: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"data\.reject"):
        job(folder, "zero_shot", "x", f"data.reject={value}")
