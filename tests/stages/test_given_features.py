from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from raydapt.artefacts.features import features_recipe, load_features, load_labels
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings, RaySettings
from raydapt.stages.given_features import given_features_stage
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe
from tests.data.features import unit, vectors, write

QUIET = RaySettings(progress=False)


def recipe_of(source: Source) -> Recipe:
    return features_recipe(source, "any model", ImageSpec(size_px=8), DataSettings())


def stage(path: Path, store: Store, **data: object):
    source = resolve_source(str(path), rows_per_part=4)
    recipe = recipe_of(source)
    return given_features_stage(source, recipe, data=DataSettings(**data), ray_settings=QUIET, store=store)


def test_the_artefact_reads_as_encoded_images_do(tmp_path: Path) -> None:
    value = vectors(11, 6)
    value[5] = 0
    labels, splits = [f"class {i % 2}" for i in range(11)], ["train"] * 6 + ["test"] * 5
    path = write(tmp_path / "x.parquet", value, label=labels, split=splits)
    started = ray.is_initialized()
    result = stage(path, Store(str(tmp_path / "store")), max_error_share=0.1)
    assert ray.is_initialized() == started
    table = load_features(result.artefact)
    expected = unit(np.delete(value, 5, 0))
    np.testing.assert_allclose(table.feature_ND[table.valid_N], expected, atol=1e-6)
    assert table.valid_N.tolist() == [row != 5 for row in range(11)]
    assert table.error_N[5] == "zero_vector"
    assert table.row_N.tolist() == list(range(11))
    assert (table.split_N, load_labels(result.artefact)) == (splits, labels)
    assert result.artefact.manifest.errors == {"zero_vector": 1}


def test_it_is_found_again_and_taken_up(tmp_path: Path) -> None:
    path, store = write(tmp_path / "x.parquet", vectors(20), group=7), Store(str(tmp_path / "store"))
    first = stage(path, store)
    assert not first.reused
    assert stage(path, store).reused
    whole = load_features(first.artefact).feature_ND
    first.artefact.discard(2)
    again = stage(path, store)
    assert not again.reused
    assert again.artefact.manifest.stats["rows_computed"] == 4
    assert torch.equal(load_features(again.artefact).feature_ND, whole)


def test_too_many_bad_vectors_stop_it(tmp_path: Path) -> None:
    value = vectors(20)
    value[3:6] = np.nan
    with pytest.raises(UserError, match=r"of 20 features cannot be used .*'not_finite'.*max_error_share"):
        stage(write(tmp_path / "x.parquet", value), Store(str(tmp_path / "store")))


def test_the_recipe_is_of_the_source(tmp_path: Path) -> None:
    recipes = set()
    for width in (3, 4):
        path = write(tmp_path / f"{width}.parquet", vectors(5, width))
        recipes |= {recipe_of(resolve_source(str(path), rows_per_part=k)).fingerprint for k in (2, 3)}
    assert len(recipes) == 4
