import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.partial_labels import load_partial_labels, partial_labels_recipe
from raydapt.methods.coreg.partial_labels import annotate
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.stages.annotate import partial_labels_stage, template_annotator
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe
from tests.models.tiny import tiny_clip

NAMES, TEMPLATES = ("cat", "fox", "sea / lake"), ["a photo of a {}", "a drawing of {}", "{}"]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def features_of(store, width, rows=(5, 3), missing=2):
    """Finished features of two parts, one image in error."""
    recipe = Recipe(kind="features", settings={}, inputs=("x",), weights="w")
    artefact = store.artefact_of(recipe)
    feature_ND = F.normalize(torch.randn(sum(rows), width, generator=torch.Generator().manual_seed(0)), dim=1)
    start = 0
    for part, count in enumerate(rows):
        stop = start + count
        mask = pa.array([row == missing for row in range(start, stop)])
        values = pa.array(feature_ND[start:stop].numpy().reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, width, mask=mask)
        ids = [f"id{row}" for row in range(start, stop)]
        artefact.commit_part(part, pa.table({"id": ids, "feature": column}))
        start = stop
    artefact.finish(recipe, range(len(rows)), {}, {})
    return recipe, artefact, feature_ND


def recipe_of(features, settings):
    return partial_labels_recipe(
        features,
        NAMES,
        annotation=settings.annotation,
        topk=settings.topk,
        prob_ratio=settings.prob_ratio,
        templates=settings.templates,
    )


def make(store, clip, settings):
    recipe, features, feature_ND = features_of(store, clip.embed_dim)
    wanted = recipe_of(recipe, settings)
    result = partial_labels_stage(features, wanted, lambda: template_annotator(clip, NAMES, settings), store=store)
    return result, feature_ND


@pytest.mark.parametrize("mode", ["prompts", "topk", "prob_ratio", "mean"])
def test_the_stored_annotation_is_the_computed_one_and_is_found_again(tmp_path, clip, mode):
    settings = CoregSettings(annotation=mode, templates=TEMPLATES, topk=2)
    store = Store(str(tmp_path))
    result, feature_ND = make(store, clip, settings)
    assert not result.reused
    labels = load_partial_labels(result.artefact)
    class_RCD = torch.stack([clip.class_embeddings(NAMES, [template]) for template in TEMPLATES])
    naive = annotate(feature_ND, class_RCD, clip.logit_scale, mode=mode, topk=2, ratio=0.5)
    whole = [row for row in range(8) if row != 2]
    torch.testing.assert_close(labels.candidate_NC[whole], naive.candidate_NC[whole])
    torch.testing.assert_close(labels.probability_NC[whole], naive.probability_NC[whole])
    assert labels.candidate_NC[2].sum() == labels.probability_NC[2].sum() == 0  # the image in error
    assert result.artefact.manifest.rows == 8
    again, _ = make(store, clip, settings)
    assert again.reused


def test_a_lost_part_alone_is_made_again(tmp_path, clip):
    settings = CoregSettings(templates=TEMPLATES)
    store = Store(str(tmp_path))
    result, _ = make(store, clip, settings)
    before = load_partial_labels(result.artefact)
    result.artefact.discard(1)
    again, _ = make(Store(str(tmp_path)), clip, settings)
    assert not again.reused
    assert again.artefact.manifest.stats["rows_per_s"] > 0
    np.testing.assert_array_equal(load_partial_labels(again.artefact).candidate_NC, before.candidate_NC)


def test_another_rule_is_another_artefact():
    recipe = Recipe(kind="features", settings={}, inputs=("x",), weights="w")
    kinds = [
        CoregSettings(templates=TEMPLATES),
        CoregSettings(templates=TEMPLATES[:2]),
        CoregSettings(templates=TEMPLATES, annotation="topk"),
        CoregSettings(templates=TEMPLATES, annotation="topk", topk=2),
    ]
    assert len({recipe_of(recipe, settings).fingerprint for settings in kinds}) == 4
    same = recipe_of(recipe, CoregSettings(templates=TEMPLATES, topk=7)).fingerprint
    assert same == recipe_of(recipe, kinds[0]).fingerprint  # topk plays no part there
