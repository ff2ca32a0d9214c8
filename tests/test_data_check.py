"""Copies, near copies and flaws of a source, against loops over all pairs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F

from raydapt.artefacts.features import FeatureTable, load_features, load_measures
from raydapt.data.measures import MEASURES
from raydapt.data.sources import resolve_source
from raydapt.models.clip import load_clip
from raydapt.report.tables import data_check_table
from raydapt.run import data_check
from raydapt.run.data_check import KINDS, DataCheck, check_data
from raydapt.settings.groups import DataSettings, RaySettings, StageSettings
from raydapt.stages.context import StageContext
from raydapt.stages.features import features_stage
from raydapt.store.artefact import Artefact, Store
from tests.data.test_measures import photo


def flipped(hashes: np.ndarray, rng: np.random.Generator, bits: int) -> np.ndarray:
    """The hashes with so many bits turned over, each at places of its own."""
    out = hashes.copy()
    for i in range(len(out)):
        for place in rng.choice(64, bits, replace=False).tolist():
            out[i] ^= np.uint64(1) << np.uint64(place)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_near_copies_are_those_of_a_loop_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 2**63, 12, dtype=np.uint64)
    hash_A = np.concatenate([first, *(flipped(first, rng, bits) for bits in (0, 1, 3, 4, 5))])
    base_KD = torch.from_numpy(rng.standard_normal((12, 16))).float()
    feature_AD = F.normalize(
        base_KD.repeat(6, 1) + 0.14 * torch.from_numpy(rng.standard_normal((72, 16))).float(), dim=1
    )
    order_A = rng.permutation(72)
    near_A, cosine_A = data_check._near_copies(hash_A, feature_AD, order_A)
    nearest = [max(float(a @ b) for j, b in enumerate(feature_AD) if j != i) for i, a in enumerate(feature_AD)]
    least = (1 + sorted(nearest)[35]) / 2  # torch's median of 72 is the lower one
    assert 0.95 < least < 0.995
    of_hash = {}  # the first image of every hash stands for all with that hash
    expected, cosines = np.full(72, -1), np.full(72, np.nan)
    for at in order_A.tolist():
        for other, hash_ in of_hash.items():
            cosine = float(feature_AD[at] @ feature_AD[other])
            if (int(hash_A[at]) ^ hash_).bit_count() <= 4 and cosine >= least:
                expected[at], cosines[at] = other, cosine
                break
        if int(hash_A[at]) not in of_hash.values():
            of_hash[at] = int(hash_A[at])
    assert (expected >= 0).any()
    assert (expected < 0).any()
    np.testing.assert_array_equal(near_A, expected)
    np.testing.assert_allclose(cosine_A, cosines, rtol=1e-5)


def test_the_cosine_of_copies_lies_between_its_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    apart_ND = F.normalize(torch.randn(50, 200, generator=generator), dim=1)
    alike_ND = F.normalize(torch.ones(50, 200) + 0.01 * torch.randn(50, 200, generator=generator), dim=1)
    assert data_check.least_cosine(apart_ND) == 0.95
    assert data_check.least_cosine(alike_ND) == 0.995
    assert data_check.least_cosine(alike_ND[:1]) == 0.95


def test_of_very_many_hashes_equal_ones_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**63, 20, dtype=np.uint64)
    hash_A = np.concatenate([first, first, flipped(first, rng, 2)])
    same_AD = F.normalize(torch.ones(60, 3), dim=1)
    assert (data_check._near_copies(hash_A, same_AD, np.arange(60))[0] >= 0).sum() == 40
    monkeypatch.setattr(data_check, "_MOST_HASHES", 10)
    assert (data_check._near_copies(hash_A, same_AD, np.arange(60))[0] >= 0).sum() == 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artefact, FeatureTable]:
    """Photos in a training and a test folder: a copy and a near copy cross over, one is broken, blank, blurry, long."""
    folder = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        (folder / split / "sea").mkdir(parents=True)
    for number in range(12):
        photo(seed=7 * number).save(folder / f"train/sea/{number:02}.png")
    for number in range(12, 16):
        photo(seed=7 * number).save(folder / f"test/sea/{number}.png")
    train, test = folder / "train/sea", folder / "test/sea"
    shutil.copy(train / "03.png", test / "copy.png")
    photo(seed=7 * 5).resize((180, 120)).save(test / "near.png")
    shutil.copy(test / "12.png", test / "twin.png")
    (train / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.new("RGB", (50, 50), "white").save(train / "blank.png")
    photo(seed=200).filter(ImageFilter.GaussianBlur(8)).save(train / "blurry.png")
    photo(90, 12, seed=300).save(train / "long.png")
    clip = load_clip("mini")
    source = resolve_source(str(folder), rows_per_part=8)
    context = StageContext(
        store=Store(str(folder.parent / "store")),
        ray=RaySettings(progress=False),
        settings=StageSettings(rows_per_part=8),
        data=DataSettings(max_error_share=0.5),
    )
    spec = {"clip_name": "mini", "clip_identity": clip.identity, "image_spec": clip.image_spec}
    artefact = features_stage(source, context, **spec).artefact
    return artefact, load_features(artefact)


@pytest.fixture(scope="module")
def found(made: tuple[Artefact, FeatureTable]) -> DataCheck:
    artefact, table = made
    rows = {"train": list[int](), "test": list[int]()}
    for row in table.valid_N.nonzero().flatten().tolist():
        rows[str(table.split_N[row])].append(row)
    return check_data(artefact, table, torch.tensor(rows["train"]), torch.tensor(rows["test"]))


def names(found: DataCheck, kind: str) -> dict[str, object]:
    rows = found.table.to_pylist()
    return {Path(row["path"]).name: row[kind] for row in rows if row[kind]}


def test_every_flaw_is_found_where_it_is(found: DataCheck) -> None:
    assert names(found, "unreadable") == {"broken.png": "not_an_image"}
    assert {name: Path(str(of)).name for name, of in names(found, "copy").items()} == {
        "copy.png": "03.png",
        "twin.png": "12.png",
    }
    assert {name: Path(str(of)).name for name, of in names(found, "near_copy").items()} == {"near.png": "05.png"}
    assert [list(names(found, kind)) for kind in ("blank", "blurry", "odd_shape")] == [
        ["blank.png"],
        ["blurry.png"],
        ["long.png"],
    ]


def test_what_stands_on_both_sides_of_a_split_is_told(found: DataCheck) -> None:
    assert (found.crossing, found.tests) == (2, 7)  # the copy and the near copy; the twin is a test image's
    (note,) = found.notes()
    assert note.startswith("2 of 7 test images are copies, or nearly, of images that were adapted to")
    assert found.sentence() == (
        "Data check of 23 images: unreadable 1, copies 2, near copies 1, blank 1, blurry 1, long and narrow 1 "
        "(data-check.parquet)."
    )


def test_tests_that_are_adapted_to_cross_nothing(made: tuple[Artefact, FeatureTable]) -> None:
    row_N = made[1].valid_N.nonzero().flatten()
    assert check_data(*made, row_N, row_N).notes() == []


def test_the_report_lists_what_was_found(found: DataCheck) -> None:
    table = data_check_table({"data_check": found.metrics()})
    assert table is not None
    assert [(row[0], row[1]) for row in table.rows] == [
        ("cannot be read", 1), ("copies", 2), ("near copies", 1), ("blank", 1), ("blurry", 1), ("long and narrow", 1),
    ]  # fmt: skip
    assert data_check_table({"data_check": {"images": dict.fromkeys(KINDS, 0), "examples": {}}}) is None
    assert data_check_table({}) is None


def test_features_of_an_earlier_release_are_checked_for_copies_alone(
    made: tuple[Artefact, FeatureTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact, table = made
    row_N = table.valid_N.nonzero().flatten()
    monkeypatch.setattr(data_check, "load_measures", lambda _: None)
    found = check_data(artefact, table, row_N, row_N)
    assert found.counts() == {"unreadable": 1, "copy": 2, "near_copy": 0, "blank": 0, "blurry": 0, "odd_shape": 0}


def test_measures_are_read_where_every_shard_has_them(made: tuple[Artefact, FeatureTable]) -> None:
    measures = load_measures(made[0])
    assert measures is not None
    assert list(measures) == list(MEASURES)
    assert np.isnan(measures["contrast"]).sum() == 1
    first = next(made[0].iter_tables(["id"], optional=["phash", "of a later release"]))
    assert first.column_names == ["id", "phash"]
