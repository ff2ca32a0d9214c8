"""What the scores are computed from: which images, which other heads, which views."""

from unittest import mock

import pytest
import torch

from raydapt.methods.configuration import config_from_tree
from raydapt.methods.contract import Batch
from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.train import scoring
from raydapt.train.scoring import MEAN, SCORES, scorer_of
from tests.methods.cases import CLASSES, NAMES, synthetic_images, tiny_clip, training_images

DESCRIPTIONS = {name: [f"a {name} in the wild", f"{name}, seen close"] for name in NAMES}


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def scorer(
    clip, method="cpl", *, held_out=None, described=True, with_pixels=False, input_kind="features", prior="unknown"
):
    images = training_images(clip=clip, with_pixels=with_pixels)
    config = config_from_tree({"method": method, "data": {"source": "nowhere", "class_prior": prior}})
    with mock.patch.object(scoring, "packaged_descriptions", return_value=DESCRIPTIONS if described else None):
        return scorer_of(config, CLASSES, clip, images, input_kind=input_kind, held_out=held_out)


def zero_shot(clip):
    return ZeroShot(clip, clip.class_embeddings(NAMES, CLASSES.templates[:1]))


def test_without_synthetic_images_two_scores_are_missing_and_the_mean_is_of_the_decisive_ones(clip):
    found = scorer(clip)(zero_shot(clip))
    assert [name for name in SCORES if found[name] is None] == [
        "synthetic_accuracy",
        "prior_match",
        "calibrated_accuracy",
    ]
    assert found[MEAN] == pytest.approx((found["agreement"] + found["cluster_agreement"]) / 2)


def test_evenness_decides_only_where_somebody_said_that_classes_are_even(clip):
    unknown = scorer(clip)(zero_shot(clip))
    uniform = scorer(clip, prior="uniform")(zero_shot(clip))
    assert uniform["prior_match"] == pytest.approx(unknown["class_balance"], abs=1e-5)
    assert uniform["mutual_information"] == pytest.approx(unknown["mutual_information"], abs=1e-5)
    decisive = [uniform[name] for name in ("agreement", "prior_match", "cluster_agreement")]
    assert uniform[MEAN] == pytest.approx(sum(decisive) / 3)
    stated = scorer(clip, prior={name: float(name == NAMES[0]) for name in NAMES})(zero_shot(clip))
    assert stated["prior_match"] < uniform["prior_match"]
    assert stated["class_balance"] == unknown["class_balance"]


def test_pixels_are_examined_on_some_of_the_images_that_features_are(clip, monkeypatch):
    monkeypatch.setattr(scoring, "_MOST_IMAGES", 50)
    monkeypatch.setattr(scoring, "_MOST_PIXELS", 20)
    features, pixels = (scorer(clip, with_pixels=True, input_kind=kind).index_E for kind in ("features", "pixels"))
    assert (len(features), len(pixels)) == (50, 17)
    assert torch.isin(pixels, features).all()


def test_the_classes_that_are_examined(clip):
    examined = scorer(clip)
    _, class_E = examined.examine(zero_shot(clip))
    naive = [int(zero_shot(clip).logits(examined.images.feature_ND[i : i + 1]).argmax()) for i in examined.index_E]
    assert class_E.tolist() == naive


def test_held_out_images_are_judged_by_what_they_were_made_of(clip):
    held_out = synthetic_images(clip)
    found = scorer(clip, held_out=held_out)(zero_shot(clip))
    said_H = zero_shot(clip).logits(held_out.feature_MD).argmax(dim=1)
    assert found["synthetic_accuracy"] == pytest.approx(float((said_H == held_out.class_M).double().mean()))
    assert found["calibrated_accuracy"] is not None


@pytest.mark.parametrize(("method", "left"), [("cpl", "descriptions"), ("fair", "text"), ("coreg", "descriptions")])
def test_the_head_that_a_method_started_from_is_no_witness(clip, method, left):
    assert set(scorer(clip, method).heads) == {left}
    assert set(scorer(clip, method, held_out=synthetic_images(clip)).heads) == {left, "synthetic"}


def test_without_descriptions_the_neighbours_alone_are_asked(clip):
    examined = scorer(clip, described=False)
    assert not examined.heads
    assert examined(zero_shot(clip))["agreement"] is not None


@pytest.mark.parametrize("input_kind", ["features", "pixels"])
def test_the_same_images_and_views_every_time(clip, input_kind):
    examined, method = scorer(clip, with_pixels=True, input_kind=input_kind), zero_shot(clip)
    method.input_kind = input_kind
    state = torch.get_rng_state()
    first, second = examined(method), examined(method)
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)  # training draws what it would have drawn
    assert -1 <= first["stability"] < 1


def test_crops_give_the_other_view_and_whole_images_stand_for_crops_that_were_not_made(clip):
    class Composite(ZeroShot):
        input_kind = "crops"

        def logits(self, image_B: Batch) -> torch.Tensor:
            assert image_B.shape[1] == 4
            return super().logits(image_B[:, 0])

    images = training_images(clip=clip)
    crop_NKD = torch.nn.functional.normalize(images.feature_ND[:, None] + 0.3 * torch.randn(60, 4, 24), dim=-1)
    object.__setattr__(images, "crop_NKD", crop_NKD)
    config = config_from_tree({"method": "fair", "data": {"source": "nowhere"}, "fair": {"descriptions": DESCRIPTIONS}})
    examined = scorer_of(config, CLASSES, clip, images, input_kind="crops", held_out=synthetic_images(clip))
    found = examined(Composite(clip, zero_shot(clip).class_CD))
    assert [name for name in SCORES if found[name] is None] == ["prior_match"]


def test_two_images_are_too_few(clip):
    images = training_images(n=2, clip=clip)
    assert scorer_of(config_from_tree({}), CLASSES, clip, images, input_kind="features", held_out=None) is None
