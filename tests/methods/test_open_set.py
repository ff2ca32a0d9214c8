import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from raydapt.data.shifts import shifted
from raydapt.methods import open_set
from raydapt.methods.open_set import OpenSetRule, detect, familiarity, fit_rule, kept_rows
from raydapt.methods.transduct.fit import fit
from raydapt.methods.transduct.neighbours import nearest
from raydapt.settings.groups import DataSettings
from tests.clip_like import ClipLike, clip_like


@pytest.fixture(scope="module")
def case():
    drawn = clip_like(ClipLike(n_classes=18, per_class=30, zero_shot=0.9, between=0.6), 0)
    chosen = shifted("30 % open set", drawn.label_N.numpy(), 0)
    feature_ND = drawn.feature_ND[torch.from_numpy(chosen.row_M)]
    text_CD = drawn.text_CD[torch.from_numpy(chosen.class_K)]
    class_N = fit(feature_ND, text_CD, 100.0).probabilities().argmax(dim=1)
    return feature_ND, text_CD, class_N, chosen.target_M >= 0


def test_familiarity_is_the_naive_one(case):
    feature_ND, text_CD, class_N, _ = (part[:40] if i != 1 else part for i, part in enumerate(case))
    neighbours = nearest(feature_ND, 3)
    mean, mean_text = sum(feature_ND) / 40, sum(text_CD) / len(text_CD)
    expected = np.zeros(40)
    for centre in (mean_text, torch.zeros_like(mean_text)):
        score = [float((f - mean) @ (text_CD[c] - centre)) for f, c in zip(feature_ND, class_N, strict=True)]
        near = neighbours.index_NK.tolist()
        smooth = [(score[i] + sum(score[j] for j in near[i]) / 3) / 2 for i in range(40)]
        average = sum(smooth) / 40
        deviation = math.sqrt(sum((x - average) ** 2 for x in smooth) / 40)
        expected += [(x - average) / deviation for x in smooth]
    found = familiarity(feature_ND, text_CD, class_N, neighbours)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)


def test_it_ranks_foreign_images_below_and_better_than_the_largest_cosine(case):
    feature_ND, text_CD, class_N, known_N = case
    found = roc_auc_score(known_N, familiarity(feature_ND, text_CD, class_N, nearest(feature_ND, 10)).numpy())
    largest = roc_auc_score(known_N, (feature_ND @ text_CD.T).max(dim=1).values.numpy())
    assert found > 0.85
    assert found > largest + 0.05


def test_orders_and_lengths_do_not_matter(case):
    feature_ND, text_CD, class_N, _ = case
    expected = familiarity(feature_ND, text_CD, class_N)
    image_N = torch.randperm(len(class_N), generator=torch.Generator().manual_seed(0))
    found = familiarity(3 * feature_ND[image_N], text_CD, class_N[image_N])
    torch.testing.assert_close(found, expected[image_N], rtol=1e-3, atol=1e-4)
    probability_N = detect(expected).none_probability(expected)
    torch.testing.assert_close(detect(found).none_probability(found), probability_N[image_N], rtol=1e-2, atol=1e-3)


def test_two_groups_are_found_with_their_share():
    generator = torch.Generator().manual_seed(0)
    score_N = torch.cat([torch.randn(700, generator=generator) + 6, torch.randn(300, generator=generator)])
    found = detect(score_N)
    assert found.share == pytest.approx(0.3, abs=0.03)
    assert found.separation == pytest.approx(6, abs=0.5)
    assert found.suspected
    assert found.clear
    assert "30% of the images" in found.sentence()
    probability_N = found.none_probability(score_N)
    assert float((probability_N[700:] > 0.5).double().mean()) > 0.98
    order_N = score_N.argsort()
    assert (probability_N[order_N].diff() <= 1e-6).all()


def test_one_group_is_no_reason_for_a_warning():
    found = detect(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    assert not found.suspected
    assert found.sentence() is None


@pytest.mark.parametrize("score_N", [torch.randn(10), torch.zeros(100)])
def test_few_or_equal_images_tell_nothing(score_N):
    found = detect(score_N)
    assert not found.suspected
    assert not found.none_probability(score_N).any()


def test_probabilities_are_those_of_two_gaussians():
    generator = torch.Generator().manual_seed(0)
    score_N = torch.cat([torch.randn(700, generator=generator) + 4, torch.randn(300, generator=generator)])
    found = detect(score_N)
    mixture = GaussianMixture(
        2, covariance_type="tied", means_init=[[0.0], [4.0]], weights_init=[0.3, 0.7], max_iter=500, tol=1e-4
    ).fit(score_N.double().numpy()[:, None])
    means, variance = mixture.means_[:, 0], mixture.covariances_[0, 0]
    for score in (-1.0, 1.5, 2.0, 5.0):
        dense = [
            w * math.exp(-((score - m) ** 2) / (2 * variance)) for w, m in zip(mixture.weights_, means, strict=True)
        ]
        told = float(found.none_probability(torch.tensor([score]))[0])
        assert told == pytest.approx(dense[means.argmin()] / sum(dense), abs=0.02)


def test_the_rule_answers_any_image_as_it_was_fitted(case, monkeypatch):
    feature_ND, text_CD, _, known_N = case
    row_N = torch.arange(len(feature_ND))
    rule = fit_rule(feature_ND, text_CD, row_N)
    expected = familiarity(feature_ND, text_CD, (feature_ND @ text_CD.T).argmax(dim=1))
    torch.testing.assert_close(rule.familiarity(feature_ND, text_CD, row_N), expected, rtol=1e-4, atol=1e-4)
    whole_N = rule.none_probability(feature_ND, text_CD, row_N)
    again = OpenSetRule.of_state(rule.state())
    assert again.groups == rule.groups
    monkeypatch.setattr(open_set, "_BLOCK_ELEMENTS", 1)  # blocks of 256
    single = torch.cat([again.none_probability(feature_ND, text_CD, row_1) for row_1 in row_N.split(1)])
    torch.testing.assert_close(single, whole_N, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.none_probability(feature_ND, text_CD, row_N), whole_N, rtol=1e-4, atol=1e-5)
    assert roc_auc_score(~known_N, whole_N.numpy()) > 0.8


def test_a_stated_share_is_kept_out(case):
    feature_ND, text_CD, _, known_N = case
    row_N = torch.arange(5, 5 + len(feature_ND))
    feature_AD = torch.cat([feature_ND[:5], feature_ND])
    kept = kept_rows(DataSettings(reject=0.3), feature_AD, row_N, text_CD)
    assert len(kept) == pytest.approx(0.7 * len(row_N), abs=2)
    assert known_N[kept - 5].mean() > known_N.mean() + 0.1
    for untouched in ("auto", False):
        assert torch.equal(kept_rows(DataSettings(reject=untouched), feature_AD, row_N, text_CD), row_N)
    few = kept_rows(DataSettings(reject=True), feature_AD, row_N[:20], text_CD)
    assert torch.equal(few, row_N[:20])


def test_a_large_set_is_sampled(case, monkeypatch):
    feature_ND, text_CD, _, _ = case
    monkeypatch.setattr(open_set, "_SAMPLE", 100)
    place_S = torch.linspace(0, len(feature_ND) - 1, 100).round().long()
    rule = fit_rule(feature_ND, text_CD, torch.arange(len(feature_ND)))
    torch.testing.assert_close(rule.mean_D, feature_ND[place_S].mean(dim=0))
