"""Every formula against a loop over images and classes."""

import math

import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.transduct import rules
from raydapt.methods.transduct.rules import Anchors, Statistics

N, C, D = 30, 4, 6


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    feature_ND = F.normalize(torch.randn(N, D, generator=generator) + 1, dim=1)
    text_CD = F.normalize(torch.randn(C, D, generator=generator) - 1, dim=1)
    label_NC = torch.randn(N, C, generator=generator).softmax(dim=1)
    return feature_ND, text_CD, label_NC


def statistics(feature_ND, label_NC):
    return Statistics(label_NC.T @ feature_ND, label_NC.sum(dim=0))


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=2e-4, atol=2e-5)


def same_softmax(found_NC, expected_NC):
    close(found_NC.softmax(dim=1), torch.as_tensor(expected_NC).softmax(dim=1))


def unit(vector):
    return vector / math.sqrt(sum(float(x) ** 2 for x in vector))


def test_text_anchors(case):
    feature_ND, text_CD, _ = case
    mean, mean_text = sum(feature_ND) / N, sum(text_CD) / C
    expected = [0.7 * unit(mean + 0.5 * (text - mean_text)) + 0.3 * text for text in text_CD]
    close(rules.text_anchors(feature_ND.mean(dim=0), text_CD, reach=0.5, gap=0.3), torch.stack(expected))


def test_spherical_head(case):
    feature_ND, text_CD, label_NC = case
    means = [unit(sum(label_NC[i, c] * feature_ND[i] for i in range(N)) + 2 * text_CD[c]) for c in range(C)]
    r = sum(float(label_NC[i, c] * (1 - feature_ND[i] @ means[c])) for i in range(N) for c in range(C)) / N
    head = rules.spherical_head(statistics(feature_ND, label_NC), text_CD, temper=10, anchor_images=2)
    found = feature_ND @ head.weight_CD.T + head.bias_C
    close(found, [[10 * float(f @ mean) / r for mean in means] for f in feature_ND])


def test_square_sums_block_by_block(case, monkeypatch):
    feature_ND, _, _ = case
    width = feature_ND.shape[1]
    expected_D = [sum(float(row[d]) ** 2 for row in feature_ND) for d in range(width)]
    for rows in (1, 7, len(feature_ND)):
        monkeypatch.setattr(rules, "_BLOCK_ELEMENTS", rows * width)
        torch.testing.assert_close(rules.square_sums(feature_ND), torch.tensor(expected_D), rtol=1e-5, atol=0)


def test_shares_prior(case):
    feature_ND, _, label_NC = case
    expected = [math.log((float(sum(label_NC[:, c])) + 2) / (N + 2 * C)) for c in range(C)]
    close(rules.shares_prior(statistics(feature_ND, label_NC), 2), expected)


def log_density(f, mean, variance):
    return sum(
        -0.5 * float(f[d] - mean[d]) ** 2 / float(variance[d]) - 0.5 * math.log(2 * math.pi * float(variance[d]))
        for d in range(D)
    )


def test_transclip_head(case):
    feature_ND, _, label_NC = case
    means = [sum(label_NC[i, c] * feature_ND[i] for i in range(N)) / sum(label_NC[:, c]) for c in range(C)]
    pairs = [(i, c) for i in range(N) for c in range(C)]
    variance = sum(label_NC[i, c] * (feature_ND[i] - means[c]) ** 2 for i, c in pairs) / N
    head = rules.transclip_head(statistics(feature_ND, label_NC), feature_ND.square().sum(dim=0))
    same_softmax(
        feature_ND @ head.weight_CD.T + head.bias_C,
        [[log_density(f, mean, variance) for mean in means] for f in feature_ND],
    )


def anchored(case, alpha):
    feature_ND, text_CD, label_NC = case
    prior = torch.linspace(0.1, 0.5, D)
    means = [
        (sum(label_NC[i, c] * feature_ND[i] for i in range(N)) + alpha * text_CD[c]) / (sum(label_NC[:, c]) + alpha)
        for c in range(C)
    ]
    total = sum(label_NC[i, c] * (feature_ND[i] - means[c]) ** 2 for i in range(N) for c in range(C))
    total = total + alpha * sum((text_CD[c] - means[c]) ** 2 + prior for c in range(C))
    square_D = feature_ND.square().sum(dim=0)
    head = rules.anchored_head(statistics(feature_ND, label_NC), Anchors(text_CD, prior), square_D, alpha)
    return means, total / (N + alpha * C), head


def test_anchored_head(case):
    means, variance, head = anchored(case, 1.5)
    same_softmax(
        case[0] @ head.weight_CD.T + head.bias_C,
        [[log_density(f, mean, variance) for mean in means] for f in case[0]],
    )


def test_anchored_means_and_variance_minimise_the_published_objective(case):
    feature_ND, text_CD, label_NC = case
    alpha = 1.5
    means, variance, _ = anchored(case, alpha)
    prior = torch.linspace(0.1, 0.5, D)

    def objective(mean_CD, variance_D):
        distance = ((feature_ND[:, None] - mean_CD) ** 2 / variance_D + variance_D.log()).sum(dim=2)
        kl = 0.5 * ((prior + (text_CD - mean_CD) ** 2) / variance_D + (variance_D / prior).log() - 1).sum()
        return float(0.5 * (label_NC * distance).sum() + alpha * kl)

    mean_CD = torch.stack(means).double()
    least = objective(mean_CD, variance.double())
    for d in range(D):
        for step in (-1e-3, 1e-3):
            moved_CD, moved_D = mean_CD.clone(), variance.double().clone()
            moved_CD[1, d] += step
            moved_D[d] *= 1 + 10 * step
            assert objective(moved_CD, variance.double()) > least
            assert objective(mean_CD, moved_D) > least


def test_tempered_scores_are_a_fraction(case):
    means, variance, head = anchored(case, 1.0)
    found = rules.tempered(head, 2.0)
    expected = [[2 * 2.0 / D * log_density(f, mean, variance) for mean in means] for f in case[0]]
    same_softmax(case[0] @ found.weight_CD.T + found.bias_C, expected)
