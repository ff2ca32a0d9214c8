import math

import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.fair.rules import (
    class_sums,
    composite,
    crop_weights,
    description_weights,
    fairness_loss,
    sample_weights,
)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(
    ("n", "k", "temperature"), [(8, 4, 1.0), (8, 1, 1.0), (8, 8, 0.02), (8, "all", 1.0), (1, 1, 1.0)]
)
def test_the_alignment_score_is_the_weighted_sum_over_the_most_similar_crops(n, k, temperature):
    whole, crops, anchors = unit(5, 16), unit(5, n, 16, seed=1), unit(3, 16, seed=2)
    u = composite(whole, crops, top_k=k, temperature=temperature)
    rho = crop_weights(whole, crops, top_k=k, temperature=temperature)
    for b in range(5):
        similarity = [float(crops[b, i] @ whole[b]) for i in range(n)]
        best = sorted(range(n), key=lambda i: -similarity[i])[: n if k == "all" else k]
        total = sum(math.exp(similarity[i] / temperature) for i in best)
        expected = torch.zeros(16)
        score = [0.0] * 3
        for i in best:
            share = math.exp(similarity[i] / temperature) / total
            assert float(rho[b, i]) == pytest.approx(share, abs=1e-5)
            expected += share * crops[b, i]
            for c in range(3):
                score[c] += share * float(crops[b, i] @ anchors[c])
        torch.testing.assert_close(u[b], expected / expected.norm(), atol=1e-5, rtol=0)
        assert int((u[b] @ anchors.T).argmax()) == max(range(3), key=lambda c: score[c])


def test_without_crops_the_composite_is_the_whole_image_itself():
    whole = unit(4, 16)
    assert composite(whole, torch.zeros(4, 0, 16), top_k=4, temperature=1.0) is whole


def test_descriptions_weigh_alike_or_by_their_likeness_to_the_prompt():
    embedding, class_M, prompt = unit(5, 16), torch.tensor([0, 0, 0, 1, 1]), unit(2, 16, seed=3)
    torch.testing.assert_close(
        description_weights(embedding, class_M, None), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    )
    weight = description_weights(embedding, class_M, prompt)
    cosine = [max(float(embedding[m] @ prompt[class_M[m]]), 1e-6) for m in range(5)]
    expected = [cosine[m] / sum(cosine[o] for o in range(5) if class_M[o] == class_M[m]) for m in range(5)]
    torch.testing.assert_close(weight, torch.tensor(expected))
    sums = class_sums(weight[:, None] * embedding, class_M, 2)
    torch.testing.assert_close(sums[1], expected[3] * embedding[3] + expected[4] * embedding[4])


@pytest.mark.parametrize("kind", ["agreement", "margin", "none"])
def test_weights_follow_the_formula_and_stay_above_0_and_at_most_1(kind):
    score, other = 20 * unit(200, 6), 20 * unit(200, 6, seed=1)
    weight = sample_weights(kind, score, other)
    for b in range(200):
        p, q = score[b].softmax(0), other[b].softmax(0)
        y = int(p.argmax())
        second = float(p.sort().values[-2])
        expected = {"agreement": float(q[y] / q.max()), "margin": 1 - second / float(p[y]), "none": 1.0}[kind]
        assert float(weight[b]) == pytest.approx(expected, abs=1e-4)
    for scale in (1.0, 1e4):
        weight = sample_weights(kind, scale * score, scale * other)
        assert bool((weight > 0).all())
        assert bool((weight <= 1).all())


def test_agreeing_heads_weigh_1():
    score = 20 * unit(50, 6)
    assert sample_weights("agreement", score, 0.5 * score).tolist() == [1.0] * 50


def of_one_batch(logits, target_C=None):
    return fairness_loss(logits, torch.full((4,), 0.25), 0.0, target_C)[0]


def test_fairness_is_least_when_all_classes_are_predicted_equally_often():
    logits = 5 * unit(7, 4)
    mean = [sum(float(row.softmax(0)[c]) for row in logits) / 7 for c in range(4)]
    assert float(of_one_batch(logits)) == pytest.approx(-sum(math.log(p) for p in mean) / 4, abs=1e-5)
    assert float(of_one_batch(50 * torch.eye(4))) == pytest.approx(math.log(4), abs=1e-5)


def test_fairness_with_stated_shares_is_the_cross_entropy_to_them_and_least_there():
    logits, target_C = 5 * unit(7, 4), torch.tensor([0.5, 0.2, 0.2, 0.1])
    mean = [sum(float(row.softmax(0)[c]) for row in logits) / 7 for c in range(4)]
    expected = -sum(float(q) * math.log(p) for q, p in zip(target_C, mean, strict=True))
    assert float(of_one_batch(logits, target_C)) == pytest.approx(expected, abs=1e-5)
    assert float(of_one_batch(logits, torch.full((4,), 0.25))) == pytest.approx(float(of_one_batch(logits)), abs=1e-6)
    least = target_C.log()[None].requires_grad_(True)
    of_one_batch(least, target_C).backward()
    torch.testing.assert_close(least.grad, torch.zeros(1, 4), atol=1e-6, rtol=0)
