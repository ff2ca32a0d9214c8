"""A second encoder in transduction: a naive form of its terms, what must not change the answer, and what it is for."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.methods.transduct.fit import fit
from raydapt.methods.transduct.settings import TransductSettings, published
from tests.clip_like import ClipLike, FeatureSet, clip_like, second_view


@pytest.fixture(scope="module")
def drawn() -> FeatureSet:
    return clip_like(ClipLike(n_classes=6, per_class=20, zero_shot=0.7, width=64), 0)


@pytest.fixture(scope="module", name="second_NE")
def drawn_second(drawn: FeatureSet) -> Tensor:
    return second_view(drawn.label_N, between=0.3, seed=1, width=48)


def answer(drawn: FeatureSet, second_NE: Tensor | None, settings: TransductSettings | None = None) -> Tensor:
    return fit(drawn.feature_ND, drawn.text_CD, drawn.scale, settings, second_NE=second_NE).probabilities()


def naive_second_scores(z_NC: Tensor, second_NE: Tensor, settings: TransductSettings) -> Tensor:
    """Means, variance and neighbours image by image, class by class; images without a feature are skipped."""
    there = [i for i in range(len(second_NE)) if bool(second_NE[i].any())]
    width, n_classes, alpha = second_NE.shape[1], z_NC.shape[1], settings.second_anchor_images
    mean_E = sum(second_NE[i] for i in there) / len(there)
    around_E = sum((second_NE[i] - mean_E) ** 2 for i in there) / len(there)
    means, total_E = [], torch.zeros(width, dtype=torch.float64)
    for c in range(n_classes):
        mass = sum(z_NC[i, c] for i in there)
        means.append((sum(z_NC[i, c] * second_NE[i] for i in there) + alpha * mean_E) / (mass + alpha))
        total_E += sum(z_NC[i, c] * (second_NE[i] - means[c]) ** 2 for i in there)
        total_E += alpha * ((mean_E - means[c]) ** 2 + around_E)
    variance_E = total_E / (len(there) + alpha * n_classes)
    score_NC = torch.zeros_like(z_NC)
    for i in there:
        for c in range(n_classes):
            squares = ((second_NE[i] - means[c]) ** 2 / variance_E).sum()
            score_NC[i, c] = -2 * settings.second_temper / width * 0.5 * squares
        cosines = {j: float(second_NE[i] @ second_NE[j]) for j in range(len(second_NE)) if j != i}
        near = sorted(cosines, key=lambda j: -cosines[j])[: settings.neighbours]
        weights = [max(0.0, cosines[j]) for j in near]
        mean_C = sum(w * z_NC[j] for w, j in zip(weights, near, strict=True)) / sum(weights)
        score_NC[i] += settings.second_neighbour_strength * mean_C
    return score_NC


@pytest.mark.parametrize("without", [0, 2])
def test_the_terms_are_the_naive_ones(drawn: FeatureSet, second_NE: Tensor, without: int) -> None:
    """One round, with everything of the first features left out but the texts and the first image labels."""
    settings = TransductSettings(rounds=1, neighbours=4, neighbour_strength=0, temper=1e-9, prior_images=1e9)
    second_NE = second_NE.clone()
    second_NE[:without] = 0
    base_NC = (drawn.scale * drawn.feature_ND @ drawn.text_CD.T).double()
    expected = (base_NC + naive_second_scores(base_NC.softmax(dim=1), second_NE.double(), settings)).softmax(dim=1)
    torch.testing.assert_close(answer(drawn, second_NE, settings).double(), expected, rtol=1e-3, atol=1e-4)


def test_the_order_of_images_and_classes_does_not_matter(drawn: FeatureSet, second_NE: Tensor) -> None:
    expected = answer(drawn, second_NE)
    image_N = torch.randperm(len(expected), generator=torch.Generator().manual_seed(1))
    class_C = torch.randperm(expected.shape[1], generator=torch.Generator().manual_seed(2))
    found = fit(
        drawn.feature_ND[image_N], drawn.text_CD[class_C], drawn.scale, second_NE=second_NE[image_N]
    ).probabilities()
    torch.testing.assert_close(found, expected[image_N][:, class_C], rtol=1e-2, atol=2e-3)


def test_features_that_say_nothing_change_nothing(drawn: FeatureSet, second_NE: Tensor) -> None:
    plain = answer(drawn, None)
    settings = TransductSettings(second_temper=0, second_neighbour_strength=0)
    torch.testing.assert_close(answer(drawn, second_NE, settings), plain)
    torch.testing.assert_close(answer(drawn, torch.zeros_like(second_NE)), plain)


@pytest.mark.parametrize("rule", ["transclip", "stata"])
def test_published_rules_do_not_read_it(drawn: FeatureSet, second_NE: Tensor, rule: str) -> None:
    settings = published(rule)
    torch.testing.assert_close(answer(drawn, second_NE, settings), answer(drawn, None, settings))


def test_clear_features_help(drawn: FeatureSet, second_NE: Tensor) -> None:
    def right(found_NC: Tensor) -> float:
        return float((found_NC.argmax(dim=1) == drawn.label_N).double().mean())

    assert right(answer(drawn, second_NE)) >= right(answer(drawn, None)) + 0.02


def test_new_images_are_answered_without_it(drawn: FeatureSet, second_NE: Tensor) -> None:
    """The linear head of the CLIP's features, fitted with a second encoder, answers images that have none."""
    even_M, odd_M = torch.arange(0, 120, 2), torch.arange(1, 120, 2)
    found = fit(drawn.feature_ND[even_M], drawn.text_CD, drawn.scale, second_NE=second_NE[even_M])
    new_MD = drawn.feature_ND[odd_M]
    base_MC = drawn.scale * new_MD @ drawn.text_CD.T
    score_MC = base_MC + new_MD @ found.head.weight_CD.T + found.head.bias_C
    assert found.head.weight_CD.shape == drawn.text_CD.shape
    label_M = drawn.label_N[odd_M]
    assert (score_MC.argmax(dim=1) == label_M).sum() > (base_MC.argmax(dim=1) == label_M).sum()


def test_the_second_view_is_independent_of_the_first(drawn: FeatureSet) -> None:
    one_NE, other_NE = (second_view(drawn.label_N, between=0.3, seed=seed) for seed in (1, 2))
    torch.testing.assert_close(one_NE, second_view(drawn.label_N, between=0.3, seed=1))
    torch.testing.assert_close(F.normalize(one_NE, dim=1), one_NE)
    assert not torch.allclose(one_NE, other_NE)
