"""Stored pixels, raw and encoded: what is read of them, what they take, and what they are named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raydapt.artefacts.pixels import StoredPixels, load_pixels, pixels_recipe
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source, resolve_source
from raydapt.methods.configuration import load_config
from raydapt.run.plan import make_plan
from raydapt.settings.groups import DataSettings, PixelEncoding, RaySettings, StageSettings
from raydapt.stages.context import StageContext
from raydapt.stages.pixels import pixels_stage
from raydapt.store.artefact import Artefact, Store
from tests.stages.images import BAD, write_images

SPEC = ImageSpec(size_px=96)
DATA = DataSettings(max_error_share=1.0)
ENCODINGS: tuple[PixelEncoding, ...] = ("raw", "webp", "jpeg")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = write_images(tmp_path_factory.mktemp("images") / "images.parquet", 150, bad={3: BAD[1], 70: BAD[0]})
    return resolve_source(str(path), rows_per_part=64)


def made(source: Source, store: Path, encoding: PixelEncoding, ray: RaySettings) -> Artefact:
    settings = StageSettings(rows_per_part=64, stored_pixels=encoding)
    context = StageContext(store=Store(str(store)), ray=ray, settings=settings, data=DATA)
    return pixels_stage(source, context, image_spec=SPEC).artefact


def in_memory(artefact: Artefact) -> torch.Tensor:
    pixel_N3SS = load_pixels(artefact, 1.0)
    assert isinstance(pixel_N3SS, torch.Tensor)
    return pixel_N3SS


def check(artefacts: dict[PixelEncoding, Artefact]) -> None:
    raw, webp, jpeg = (in_memory(artefacts[encoding]).numpy().astype(int) for encoding in ENCODINGS)
    assert raw.shape == (150, 3, 96, 96)
    np.testing.assert_array_equal(webp, raw)
    assert 0 < np.abs(jpeg - raw).mean() <= 3
    broken_N = ~raw.any(axis=(1, 2, 3))
    assert broken_N.nonzero()[0].tolist() == [3, 70]
    assert not jpeg[broken_N].any()
    size = {encoding: sum(shard.bytes for shard in made.manifest.shards) for encoding, made in artefacts.items()}
    assert size["raw"] > size["webp"] > size["jpeg"]


@pytest.mark.slow
def test_encoded_pixels_are_decoded_as_they_are_read(source: Source, tmp_path: Path) -> None:
    artefacts = {each: made(source, tmp_path, each, RaySettings(progress=False)) for each in ENCODINGS}
    check(artefacts)
    assert len({artefact.fingerprint for artefact in artefacts.values()}) == 3
    blocks = []
    for artefact in artefacts.values():
        stored, whole = load_pixels(artefact, 1e-6), in_memory(artefact)
        assert isinstance(stored, StoredPixels)
        for row_M in (torch.arange(150), torch.tensor([149, 3, 3, 70]), torch.tensor([], dtype=torch.int64)):
            assert torch.equal(stored[row_M], whole[row_M])
        blocks.append(stored.block_of(torch.arange(150)).tolist())
    assert blocks[0] == blocks[1] == blocks[2]  # so that the order of training is the same
    assert len(set(blocks[0])) > 3  # a part is several groups of rows, encoded or not


@pytest.mark.ray
def test_ray_encodes_the_same(source: Source, tmp_path: Path, ray_cluster: None) -> None:
    ray = RaySettings(address="local", cpus=2, progress=False)
    for encoding in ENCODINGS[1:]:
        here = made(source, tmp_path / "here", encoding, RaySettings(progress=False))
        there = made(source, tmp_path / "there", encoding, ray)
        assert there.manifest.shards == here.manifest.shards


def test_raw_pixels_have_the_name_that_they_had(source: Source) -> None:
    usual = pixels_recipe(source, SPEC, DATA)
    assert usual == pixels_recipe(source, SPEC, DATA, "raw")
    assert "encoding" not in usual.settings


def test_lossy_pixels_name_another_run_and_lossless_ones_do_not(source: Source, tmp_path: Path) -> None:
    words = ["data.source=digits", "data.limit=120", f"store={tmp_path}", "fair.layer_norms=true", "method=fair"]
    raw, webp, jpeg = (
        make_plan(load_config(None, [*words, f"features.stored_pixels={encoding}"])) for encoding in ENCODINGS
    )
    assert raw.run_name == webp.run_name != jpeg.run_name
    pixels = [next(spec.recipe for spec in plan.artefacts if spec.name == "pixels") for plan in (raw, webp, jpeg)]
    assert len({recipe.fingerprint for recipe in pixels if recipe is not None}) == 3
    features = make_plan(load_config(None, ["method=cpl", *words[:3], "features.stored_pixels=jpeg"]))
    assert features.run_name == make_plan(replace(features.config, features=StageSettings())).run_name
