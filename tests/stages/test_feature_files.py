from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.features import features_recipe, load_features, load_labels
from raydapt.data.class_features import MEAN, read_class_features
from raydapt.data.classes import ClassSpace
from raydapt.data.sources import resolve_source
from raydapt.errors import UserError
from raydapt.methods.ensemble.method import Ensemble
from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.models.clip import load_clip
from raydapt.models.given_embeddings import GivenEmbeddings
from raydapt.settings.groups import DataSettings, RaySettings
from raydapt.stages.feature_files import write_features
from raydapt.stages.given_features import given_features_stage
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe

NAMES = ("cat", "fox", "storage_tank")
TEMPLATES = ("a photo of a {}.", "a drawing of {}", "{}")
CLASSES = ClassSpace(names=NAMES, labels=NAMES, templates=TEMPLATES)


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini")


def encoded(store: Store, width: int, rows: tuple[int, ...] = (40, 23), missing: int = 11):
    """Finished features as encoding images leaves them."""
    recipe = Recipe(kind="features", settings={}, inputs=("x",), weights="w")
    artefact, start = store.artefact_of(recipe), 0
    value = F.normalize(torch.randn(sum(rows), width, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    for part, count in enumerate(rows):
        index = list(range(start, start + count))
        mask = pa.array([row == missing for row in index])
        feature = pa.FixedSizeListArray.from_arrays(pa.array(value[index].reshape(-1)), width, mask=mask)
        columns = {
            "row": index,
            "id": [f"id{row}" for row in index],
            "label": [NAMES[row % 3] for row in index],
            "split": ["test" if row % 4 == 0 else "train" for row in index],
            "path": [f"{row}.png" for row in index],
            "error": pa.array(["corrupt" if row == missing else None for row in index], pa.string()),
            "feature": feature,
        }
        artefact.commit_part(part, pa.table(columns))
        start += count
    artefact.finish(recipe, range(len(rows)), {}, {})
    return artefact


@pytest.mark.parametrize("output", ["disk", "memory://exported"])
def test_written_features_give_the_same_predictions(tmp_path: Path, clip, output: str) -> None:
    store = Store(str(tmp_path / "store"))
    before = encoded(store, clip.embed_dim)
    address = str(tmp_path / output) if output == "disk" else output
    try:
        features, classes = write_features(before, CLASSES, clip, address)
        source = resolve_source(features, rows_per_part=16)
        data = DataSettings(max_error_share=0.1)
        recipe = features_recipe(source, clip.identity, clip.image_spec, data)
        quiet = RaySettings(progress=False)
        after = given_features_stage(source, recipe, data=data, ray_settings=quiet, store=store).artefact
        given = read_class_features(classes)
        one, two = load_features(before), load_features(after)
        assert torch.equal(one.feature_ND, two.feature_ND)
        assert torch.equal(one.valid_N, two.valid_N)
        assert (one.id_N, one.split_N, one.path_N) == (two.id_N, two.split_N, two.path_N)
        assert load_labels(before) == load_labels(after)
        assert given.templates == (*TEMPLATES, MEAN)
        assert given.logit_scale == clip.logit_scale
        other = GivenEmbeddings(given, logit_scale=given.logit_scale)
        for make in (lambda c, templates: ZeroShot(c, c.class_embeddings(NAMES, templates[:1])),
                     lambda c, templates: Ensemble(c, NAMES, templates)):  # fmt: skip
            logits = [make(clip, TEMPLATES).logits(one.feature_ND), make(other, given.templates).logits(two.feature_ND)]
            torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
            assert torch.equal(logits[0].argmax(1), logits[1].argmax(1))
        mean_CD = other.class_embeddings(NAMES, [MEAN])
        torch.testing.assert_close(mean_CD, clip.class_embeddings(NAMES, TEMPLATES), atol=1e-5, rtol=0)
    finally:
        if output != "disk" and fsspec.filesystem("memory").exists("/exported"):
            fsspec.filesystem("memory").rm("/exported", recursive=True)


def test_half_precision_is_half_as_large(tmp_path: Path, clip) -> None:
    artefact = encoded(Store(str(tmp_path / "store")), clip.embed_dim)
    features, classes = write_features(artefact, CLASSES, clip, str(tmp_path / "out"), precision="float16")
    for path in (features, classes):
        assert pq.read_schema(path).field("feature").type == pa.list_(pa.float16(), clip.embed_dim)
    value = np.array([row for row in pq.read_table(features)["feature"].to_pylist() if row is not None])
    table = load_features(artefact)
    np.testing.assert_allclose(value, table.feature_ND[table.valid_N], atol=1e-3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.parquet", "features.parquet"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, clip) -> None:
    artefact = encoded(Store(str(tmp_path / "store")), clip.embed_dim)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"--output=.*cannot be written"):
        write_features(artefact, CLASSES, clip, str(tmp_path / "file" / "out"))
