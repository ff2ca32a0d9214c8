import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.partial_labels import load_partial_labels, partial_labels_recipe
from raydapt.methods.coreg.partial_labels import annotate
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.stages.annotate import answer_annotator, partial_labels_stage, template_annotator
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
        mask = pa.array([row == missing for row in range(start, stop)], pa.bool_())
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
    np.testing.assert_array_equal(labels.candidate_NC.toarray()[whole], naive.candidate_NC.toarray()[whole])
    assert torch.equal(labels.likeliest_N[whole], naive.likeliest_N[whole])
    assert labels.candidate_NC.toarray()[2].sum() == 0  # the image in error
    assert int(labels.likeliest_N[2]) == -1
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
    after = load_partial_labels(again.artefact)
    np.testing.assert_array_equal(after.candidate_NC.toarray(), before.candidate_NC.toarray())
    assert torch.equal(after.likeliest_N, before.likeliest_N)


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


@pytest.mark.parametrize("mode", ["prompts", "mean"])
def test_an_earlier_releases_parts_with_all_probabilities_are_read_as_they_are_meant(tmp_path, clip, mode):
    settings = CoregSettings(annotation=mode, templates=TEMPLATES)
    result, feature_ND = make(Store(str(tmp_path / "new")), clip, settings)
    wanted = load_partial_labels(result.artefact)
    recipe = recipe_of(Recipe(kind="features", settings={}, inputs=("x",), weights="w"), settings)
    old, start = Store(str(tmp_path / "old")).artefact_of(recipe), 0
    for part, table in enumerate(result.artefact.iter_tables(["id", "candidates"])):
        class_RCD = torch.stack([clip.class_embeddings(NAMES, [template]) for template in TEMPLATES])
        logits_RMC = torch.stack(
            [clip.logit_scale * feature_ND[start : start + len(table)] @ class_CD.T for class_CD in class_RCD]
        )
        probability_MC = logits_RMC.softmax(-1).mean(0).numpy()
        if part == 0:
            probability_MC[2] = 0.0  # the image in error
        dense = pa.FixedSizeListArray.from_arrays(pa.array(probability_MC.reshape(-1)), len(NAMES))
        old.commit_part(part, table.append_column("probability", dense))
        start += len(table)
    old.finish(recipe, range(2), {}, {})
    found = load_partial_labels(old)
    np.testing.assert_allclose(found.candidate_NC.toarray(), wanted.candidate_NC.toarray(), rtol=1e-5)
    assert found.likeliest_N.tolist() == wanted.likeliest_N.tolist()


def test_answers_of_finished_runs_are_read_part_by_part_also_behind_parts_that_are_there(tmp_path):
    store, settings = Store(str(tmp_path)), CoregSettings(templates=TEMPLATES)
    recipe, features, _ = features_of(store, 4, rows=(5, 0, 3, 2))
    vote_RNC = torch.rand(2, 10, 3, generator=torch.Generator().manual_seed(2)).softmax(-1)
    answers = []
    for number, vote_NC in enumerate(vote_RNC):
        wanted = Recipe(kind="answers", settings={"run": number}, inputs=(recipe.fingerprint,))
        artefact, start = store.artefact_of(wanted), 0
        for part, rows in enumerate((5, 0, 3, 2)):
            values = pa.array(vote_NC[start : start + rows].numpy().reshape(-1))
            artefact.commit_part(part, pa.table({"probability": pa.FixedSizeListArray.from_arrays(values, 3)}))
            start += rows
        artefact.finish(wanted, range(4), {}, {})
        answers.append(artefact)
    wanted = recipe_of(recipe, settings)

    def labels():
        result = partial_labels_stage(features, wanted, lambda: answer_annotator(answers, settings), store=store)
        return result.artefact, load_partial_labels(result.artefact)

    artefact, first = labels()
    for n in (n for n in range(10) if n != 2):
        voted = {int(vote_RNC[r, n].argmax()) for r in range(2)}
        assert first.candidate_NC.toarray()[n].tolist() == [float(c in voted) for c in range(3)]
        assert int(first.likeliest_N[n]) == int((vote_RNC[0, n] + vote_RNC[1, n]).argmax())
    artefact.discard(2)
    np.testing.assert_array_equal(labels()[1].candidate_NC.toarray(), first.candidate_NC.toarray())
    with pytest.raises(RuntimeError, match="no part that begins at row 5"):
        answer_annotator(answers[:1], settings)(5, torch.zeros(4, 4))
