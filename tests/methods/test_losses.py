import math

import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.prompting.losses import candidate_loss, two_group_cross_entropy


def batch(n=9, n_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_BC = 4 * torch.randn(n, n_classes, generator=generator)
    candidate_BC = (torch.rand(n, n_classes, generator=generator) > 0.5).float()
    candidate_BC[:, 0] = 1
    return logits_BC, candidate_BC


@pytest.mark.parametrize("soft", [False, True])
def test_candidate_loss_equals_the_loop(soft):
    logits_BC, target_BC = batch()
    if soft:
        target_BC = F.normalize(target_BC * torch.rand_like(target_BC), p=1, dim=1)
    total = 0.0
    for logits, target in zip(logits_BC.tolist(), target_BC.tolist(), strict=True):
        normaliser = sum(math.exp(x) for x in logits)
        total -= math.log(sum(y * math.exp(x) / normaliser for x, y in zip(logits, target, strict=True)))
    assert float(candidate_loss(logits_BC, target_BC)) == pytest.approx(total / len(logits_BC), rel=1e-5)


def test_candidate_loss_of_one_candidate_is_cross_entropy_and_of_all_is_zero():
    logits_BC, _ = batch()
    label_B = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    one_BC = F.one_hot(label_B, 5).float()
    torch.testing.assert_close(candidate_loss(logits_BC, one_BC), F.cross_entropy(logits_BC, label_B))
    assert float(candidate_loss(logits_BC, torch.ones_like(logits_BC))) == pytest.approx(0, abs=1e-6)


def test_candidate_loss_has_a_finite_gradient_where_the_candidates_are_impossible():
    logits_BC = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    loss = candidate_loss(logits_BC, torch.tensor([[0.0, 0.0, 1.0]]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(400)
    torch.testing.assert_close(logits_BC.grad, torch.tensor([[1.0, 0.0, -1.0]]))


def test_two_groups_are_averaged_apart():
    logits_BC, _ = batch()
    label_B = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    labelled_B = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1]).bool()
    actual = two_group_cross_entropy(
        logits_BC, F.one_hot(label_B, 5).float(), labelled_B, labelled_weight=3.0, unlabelled_weight=0.5
    )
    labelled = F.cross_entropy(logits_BC[labelled_B], label_B[labelled_B])
    unlabelled = F.cross_entropy(logits_BC[~labelled_B], label_B[~labelled_B])
    torch.testing.assert_close(actual, 3 * labelled + 0.5 * unlabelled)


def test_a_group_without_images_counts_nothing():
    logits_BC, _ = batch()
    target_BC = F.one_hot(torch.zeros(9, dtype=torch.int64), 5).float()
    actual = two_group_cross_entropy(
        logits_BC, target_BC, torch.zeros(9, dtype=torch.bool), labelled_weight=7.0, unlabelled_weight=1.0
    )
    torch.testing.assert_close(actual, F.cross_entropy(logits_BC, target_BC))
