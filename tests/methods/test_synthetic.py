"""AiR's arithmetic against loops that follow the formulas word by word."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.air.rules import class_weights, fuse, matching_scale, recognised
from tests.methods.cases import probabilities


def features(n, width=6, seed=0):
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_score(image_D, feature_KD, prototypes, nearest):
    """s_c(x), with the K images chosen by their distance to the class mean."""
    mean_D = sum(feature_KD) / len(feature_KD)
    if prototypes == "mean":
        length = math.sqrt(sum(float(x) ** 2 for x in mean_D))
        return sum(float(v) * float(m) / length for v, m in zip(image_D, mean_D, strict=True))
    chosen = list(range(len(feature_KD)))
    if prototypes == "nearest":
        chosen.sort(key=lambda k: float(((feature_KD[k] - mean_D) ** 2).sum()))
        chosen = chosen[:nearest]
    return sum(float(image_D @ feature_KD[k]) for k in chosen) / len(chosen)


@pytest.mark.parametrize("prototypes", ["nearest", "all", "mean"])
@pytest.mark.parametrize("nearest", [1, 4, 100])
def test_scores_are_mean_similarities_to_the_chosen_images(prototypes, nearest):
    feature_MD, class_M = features(40), torch.arange(40) % 3
    image_UD = features(10, seed=1)
    weight_CD = class_weights(feature_MD, class_M, 3, prototypes=prototypes, nearest=nearest)
    for image_D, score_C in zip(image_UD, image_UD @ weight_CD.T, strict=True):
        expected = [naive_score(image_D, feature_MD[class_M == c], prototypes, nearest) for c in range(3)]
        assert score_C.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_order_of_the_images_changes_nothing():
    feature_MD, class_M = features(30), torch.arange(30) % 3
    order_M = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    one = class_weights(feature_MD, class_M, 3, prototypes="nearest", nearest=4)
    other = class_weights(feature_MD[order_M], class_M[order_M], 3, prototypes="nearest", nearest=4)
    torch.testing.assert_close(one, other)


def test_a_class_without_images_is_refused():
    with pytest.raises(ValueError, match="class 2"):
        class_weights(features(4), torch.tensor([0, 0, 1, 1]), 3, prototypes="all", nearest=1)


@pytest.mark.parametrize("weight", [0.25, 1.0, 2.0])
def test_fusion_is_the_normalised_weighted_sum(weight):
    text_UK, image_UK = probabilities(20, 4), probabilities(20, 4, seed=1)
    fused_UK = fuse(text_UK, image_UK, weight)
    for text_K, image_K, fused_K in zip(text_UK, image_UK, fused_UK, strict=True):
        raw = [float(p) + weight * float(q) for p, q in zip(text_K, image_K, strict=True)]
        assert fused_K.tolist() == pytest.approx([r / sum(raw) for r in raw], rel=1e-5)
    np.testing.assert_allclose(fused_UK.sum(axis=1), 1, rtol=1e-6)
    assert fused_UK.dtype == np.float32


@pytest.mark.parametrize("top", [1, 2, 3])
def test_cleaning_keeps_what_zero_shot_ranks_high_enough(top):
    score_MC, class_M = torch.from_numpy(probabilities(30, 4)), torch.arange(30) % 4
    kept_M = recognised(score_MC, class_M, top)
    for score_C, c, kept in zip(score_MC.tolist(), class_M.tolist(), kept_M.tolist(), strict=True):
        assert kept == (c in sorted(range(4), key=lambda k: -score_C[k])[:top])


def test_a_class_that_cleaning_would_empty_keeps_its_images():
    score_MC = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert recognised(score_MC, torch.tensor([0, 1, 1]), 1).tolist() == [True, True, True]


def test_the_matching_scale_gives_the_asked_confidence():
    score_UK = 0.1 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    for confidence in (0.3, 0.6, 0.95):
        scale = matching_scale(score_UK, confidence)
        mean = sum(float((scale * score_K).softmax(0).max()) for score_K in score_UK) / 200
        assert mean == pytest.approx(confidence, abs=1e-4)


def test_a_confidence_out_of_reach_gives_a_finite_scale():
    assert matching_scale(torch.zeros(4, 3), 0.9) == pytest.approx(1e4)
    assert 0 < matching_scale(torch.randn(4, 3), 0.1) < 1e-6
