"""Every score against a loop that follows its definition word by word."""

import math

import numpy as np
import pytest
import torch

from raydapt.methods import scores
from tests.methods.cases import probabilities


@pytest.fixture(params=[0, 1], name="probability_NC")
def answers_of(request):
    return torch.from_numpy(probabilities(30, 4, seed=request.param)).double()


def entropy(p):
    return -sum(float(x) * math.log(float(x)) for x in p if x > 0)


def test_mutual_information(probability_NC):
    mean = probability_NC.mean(dim=0)
    expected = (entropy(mean) - np.mean([entropy(p) for p in probability_NC])) / math.log(4)
    assert scores.mutual_information(probability_NC) == pytest.approx(expected)


def test_mutual_information_is_one_for_sure_balanced_answers_and_nothing_for_a_collapse():
    assert scores.mutual_information(torch.eye(4).repeat(3, 1)) == pytest.approx(1)
    assert scores.mutual_information(torch.eye(4)[:1].repeat(9, 1)) == pytest.approx(0)
    assert scores.mutual_information(torch.full((9, 4), 0.25)) == pytest.approx(0)


def test_class_balance(probability_NC):
    assert scores.class_balance(probability_NC) == pytest.approx(entropy(probability_NC.mean(dim=0)) / math.log(4))
    assert scores.class_balance(torch.eye(4)[:1].repeat(9, 1)) == pytest.approx(0)
    assert scores.class_balance(torch.full((9, 4), 0.25)) == pytest.approx(1)


def test_neighbourhood_density(probability_NC):
    p, n, total = probability_NC.numpy(), len(probability_NC), 0.0
    for i in range(n):
        cosine = [p[i] @ p[j] / np.linalg.norm(p[i]) / np.linalg.norm(p[j]) for j in range(n) if j != i]
        weight = np.exp((np.array(cosine) - max(cosine)) / 0.05)
        total += entropy(weight / weight.sum())
    assert scores.neighbourhood_density(probability_NC) == pytest.approx(total / n / math.log(n - 1))


def test_neighbourhood_density_is_higher_where_answers_come_in_groups():
    grouped, spread = torch.eye(4).repeat(6, 1), torch.eye(24)[:, :24]
    assert scores.neighbourhood_density(grouped) < scores.neighbourhood_density(torch.ones(24, 4) / 4) + 1e-9
    pairs = torch.eye(12).repeat(2, 1)
    assert scores.neighbourhood_density(grouped) > scores.neighbourhood_density(pairs)
    assert scores.neighbourhood_density(spread[:2]) == 0


def test_agreement_is_cohens_kappa():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 3, (50,), generator=generator), torch.randint(0, 3, (50,), generator=generator)
    second[:25] = first[:25]
    same = sum(int(a == b) for a, b in zip(first, second, strict=True)) / 50
    chance = sum(float((first == c).double().mean() * (second == c).double().mean()) for c in range(3))
    assert scores.agreement(first, second, 3) == pytest.approx((same - chance) / (1 - chance))
    assert scores.agreement(first, first, 3) == pytest.approx(1)


def test_a_collapsed_classifier_agrees_with_nothing():
    zeros = torch.zeros(9, dtype=torch.int64)
    assert scores.agreement(zeros, zeros, 3) == 0
    assert scores.agreement(zeros, torch.arange(9) % 3, 3) == pytest.approx(0)


def test_consensus_is_the_kappa_with_the_plurality_of_trials():
    class_TN = torch.randint(3, (5, 40), generator=torch.Generator().manual_seed(0))
    class_TN[:, 20:] = 1  # half of the images are agreed on
    voted = []
    for n in range(40):
        votes = [int((class_TN[:, n] == c).sum()) for c in range(3)]
        voted.append(votes.index(max(votes)))
    expected = [scores.agreement(class_N, torch.tensor(voted), 3) for class_N in class_TN]
    assert scores.consensus(class_TN, 3) == pytest.approx(expected)


def test_a_trial_that_nobody_follows_has_the_least_consensus():
    most_N = torch.arange(30) % 3
    class_TN = torch.stack([most_N, most_N, most_N.roll(1), most_N])
    assert scores.consensus(class_TN, 3) == pytest.approx([1, 1, -0.5, 1])


def test_neighbours_vote_without_the_image_itself(probability_NC):
    feature_ND = torch.nn.functional.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    vote_N = scores.neighbours_vote(probability_NC, scores.nearest_images(feature_ND, 3))
    for i in range(30):
        others = sorted((j for j in range(30) if j != i), key=lambda j: -float(feature_ND[i] @ feature_ND[j]))[:3]
        assert int(vote_N[i]) == int(sum(probability_NC[j] for j in others).argmax())


def test_calibrated_accuracy():
    generator = torch.Generator().manual_seed(0)
    confidence_H, confidence_N = torch.rand(40, generator=generator), torch.rand(60, generator=generator)
    right_H = torch.rand(40, generator=generator) < 0.7
    # The threshold under which as large a share of the held-out images lies as is wrong.
    threshold = sorted(confidence_H.tolist())[40 - int(right_H.sum())]
    expected = sum(c >= threshold for c in confidence_N.tolist()) / 60
    assert scores.calibrated_accuracy(confidence_H, right_H, confidence_N) == pytest.approx(expected)
    share = scores.calibrated_accuracy(confidence_H, right_H, confidence_H)
    assert share == pytest.approx(float(right_H.double().mean()))
    assert scores.calibrated_accuracy(confidence_H, torch.zeros(40, dtype=torch.bool), confidence_N) == 0


def test_accuracy_and_mean():
    assert scores.accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])) == pytest.approx(2 / 3)
    assert scores.mean_of([0.5, None, 1.0]) == pytest.approx(0.75)
    assert scores.mean_of([None]) == 0


def test_cluster_agreement_is_mutual_information_beyond_what_chance_gives():
    generator = np.random.default_rng(0)
    class_N, cluster_N = generator.integers(0, 3, 18), generator.integers(0, 4, 18)
    cluster_N[:9] = class_N[:9]

    def information(first_N, second_N):
        both = [(a, b) for a in set(first_N) for b in set(second_N)]
        share = {(a, b): np.mean((first_N == a) & (second_N == b)) for a, b in both}
        return sum(p * math.log(p / np.mean(first_N == a) / np.mean(second_N == b)) for (a, b), p in share.items() if p)

    shuffles = [information(class_N, generator.permutation(cluster_N)) for _ in range(3000)]
    mean_entropy = np.mean([entropy(np.bincount(some_N) / 18) for some_N in (class_N, cluster_N)])
    expected = (information(class_N, cluster_N) - np.mean(shuffles)) / (mean_entropy - np.mean(shuffles))
    found = scores.cluster_agreement(torch.from_numpy(class_N), torch.from_numpy(cluster_N))
    assert found == pytest.approx(expected, abs=0.02)
    assert scores.cluster_agreement(torch.zeros(18).long(), torch.from_numpy(cluster_N)) == pytest.approx(0)


def test_clusters_are_those_of_images_that_lie_together():
    centre_CD = torch.eye(3, 8)
    label_N = torch.arange(30) % 3
    feature_ND = centre_CD[label_N] + 0.05 * torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    cluster_N = scores.clusters(feature_ND, 3)
    assert scores.cluster_agreement(label_N, cluster_N) == pytest.approx(1)
    assert torch.equal(cluster_N, scores.clusters(feature_ND, 3))
    assert len(scores.clusters(feature_ND[:2], 3)) == 2
    assert scores.clusters(feature_ND[:1].repeat(4, 1), 3).tolist() == [0, 0, 0, 0]  # without a warning
