"""Features that are read by rows: the same as the tensor that they stand for, and never asked for as a whole."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from raydapt.artefacts import features as artefact_features
from raydapt.artefacts import rows as rows_module
from raydapt.artefacts.features import load_vectors
from raydapt.artefacts.rows import HeldFeatures, copy_rows, held, on_device, room_for, rows_of
from raydapt.methods.transduct import neighbours
from raydapt.methods.transduct.fit import fit
from raydapt.run import pipeline
from tests.clip_like import ClipLike, clip_like
from tests.data.features import unit, write
from tests.test_feature_sources import NAMES, WIDTH, job


@pytest.fixture(scope="module")
def drawn():
    return clip_like(ClipLike(n_classes=6, per_class=40, zero_shot=0.7, width=64), 0)


def test_held_features_are_the_rows_of_their_tensor(drawn):
    value_AD = drawn.feature_ND.half()
    row_N = torch.arange(239, -1, -3)
    some = rows_of(held(value_AD), row_N)
    expected = torch.stack([value_AD[row].float() for row in row_N.tolist()])
    assert some.shape == (80, 64)
    assert len(some) == 80
    assert torch.equal(some[slice(None)], expected)
    assert torch.equal(some[slice(5, 20)], expected[5:20])
    index_M = torch.tensor([7, 0, 79, 7])
    assert torch.equal(some[index_M], expected[index_M])
    assert torch.equal(rows_of(some, index_M)[slice(1, None)], expected[index_M][1:])
    assert torch.equal(copy_rows(some, index_M, torch.full((9, 64), torch.nan)), expected[index_M])
    assert torch.equal(on_device(some, torch.device("meta")).value_AD.new_ones(1, device="cpu"), torch.ones(1).half())


def test_all_rows_are_the_features_themselves_and_some_share_their_memory(drawn):
    assert held(drawn.feature_ND) is drawn.feature_ND
    assert rows_of(drawn.feature_ND, torch.arange(240)) is drawn.feature_ND
    some = rows_of(drawn.feature_ND, torch.arange(10))
    assert isinstance(some, HeldFeatures)
    assert some.value_AD is drawn.feature_ND


@pytest.mark.parametrize(("most", "kind"), [(4 * 10 * 3, torch.float32), (4 * 10 * 3 - 1, torch.float16)])
def test_features_beyond_a_limit_are_held_in_float16(monkeypatch, most, kind):
    monkeypatch.setattr(rows_module, "MOST_EXACT_BYTES", most)
    assert room_for(10, 3).dtype == kind


def test_float16_features_give_the_labels_of_the_same_values_in_float32(drawn):
    half_ND = drawn.feature_ND.half()
    one = fit(held(half_ND), drawn.text_CD, drawn.scale).probabilities()
    assert torch.equal(one, fit(half_ND.float(), drawn.text_CD, drawn.scale).probabilities())
    exact = fit(drawn.feature_ND, drawn.text_CD, drawn.scale).probabilities()
    assert float((one.argmax(dim=1) == exact.argmax(dim=1)).double().mean()) > 0.98
    assert float((one - exact).abs().mean()) < 1e-3


class Counted(HeldFeatures):
    """Notes how many rows were asked for at a time."""

    most = 0

    def __getitem__(self, rows):
        found = super().__getitem__(rows)
        Counted.most = max(Counted.most, len(found))
        return found


@pytest.mark.slow
def test_a_run_never_asks_for_all_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At small blocks, as many million images have them; the features are those of the store, in float16."""
    generator, n_images = np.random.default_rng(0), 3000
    centre_CD = unit(generator.standard_normal((3, WIDTH)))
    class_N = np.arange(n_images) % 3
    feature_ND = unit(centre_CD[class_N] + 0.2 * generator.standard_normal((n_images, WIDTH)))
    splits = np.where(np.arange(n_images) % 10 == 0, "test", "train").tolist()
    write(tmp_path / "x.parquet", feature_ND, label=[NAMES[c] for c in class_N], split=splits)
    rows = [(name, f"{word} {{}}.") for word in ("a", "the", "some") for name in NAMES]
    class_MD = unit(np.tile(centre_CD, (3, 1)) + 0.25 * generator.standard_normal((9, WIDTH))).astype(np.float32)
    columns = {"name": [name for name, _ in rows], "template": [wording for _, wording in rows]}
    write(tmp_path / "classes.parquet", class_MD, **columns)
    exact = pipeline.run(job(tmp_path, "transduct", f"runs={tmp_path}/exact")).read_json("metrics.json")

    monkeypatch.setattr(rows_module, "MOST_EXACT_BYTES", 0)
    monkeypatch.setattr(rows_module, "HeldFeatures", Counted)
    monkeypatch.setattr(neighbours, "EXACT_LIMIT", 100)
    small = {"artefacts.rows._BLOCK_ROWS": 256, "methods.transduct.fit._BLOCK_ELEMENTS": 0, "methods.guard.SAMPLE": 200,
             "methods.transduct.rules._BLOCK_ELEMENTS": 256 * WIDTH, "methods.best_classes._ROWS_PER_CHUNK": 256,
             "methods.transduct.lists._ROWS": 256, "methods.transduct.lists._MOST_COARSE": 4,
             "methods.transduct.lists._PER_LIST": 50, "methods.transduct.lists._POINTS_PER_LIST": 10,
             "artefacts.rows._PIECE_ROWS": 256, "methods.open_set._SAMPLE": 200, "train.scoring._MOST_IMAGES": 200,
             "run.guarding.SAMPLE": 200, "methods.open_set._BLOCK_ELEMENTS": 0}  # fmt: skip
    for name, value in small.items():
        module, _, constant = name.rpartition(".")
        monkeypatch.setattr(import_module(f"raydapt.{module}"), constant, value)
    found = pipeline.run(job(tmp_path, "transduct", f"runs={tmp_path}/held", "train.predict_batch_size=256")).read_json(
        "metrics.json"
    )
    assert 200 <= Counted.most <= 300
    for group in ("zero_shot", "adapted"):
        assert found[group]["top1"] == pytest.approx(exact[group]["top1"], abs=0.5)
    assert found["transduct"]["adapted"]["top1"] == pytest.approx(exact["transduct"]["adapted"]["top1"], abs=0.5)


def test_features_are_read_once_while_somebody_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows_module, "MOST_EXACT_BYTES", 0)
    feature_ND = unit(np.random.default_rng(0).standard_normal((50, WIDTH)))
    write(tmp_path / "x.parquet", feature_ND, split=["train"] * 50)
    class_MD = unit(np.random.default_rng(1).standard_normal((3, WIDTH))).astype(np.float32)
    write(tmp_path / "classes.parquet", class_MD, name=NAMES)
    plan = pipeline.make_plan(job(tmp_path, "zero_shot"))
    artefact = pipeline.make_features(plan).artefact
    table = artefact_features.load_features(artefact)
    again, valid_N = load_vectors(artefact)
    assert again.value_AD is table.feature_ND.value_AD
    assert again.value_AD.dtype == torch.float16
    assert valid_N is table.valid_N
    torch.testing.assert_close(again[slice(None)], torch.from_numpy(feature_ND).float(), atol=1e-3, rtol=0)
