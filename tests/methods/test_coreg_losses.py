import math

import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.coreg import losses


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def logits_of(b=7, c=4, seed=1):
    return 2 * torch.randn(b, c, generator=torch.Generator().manual_seed(seed))


TARGET_BC = logits_of(seed=2).softmax(-1)
PARTIAL_B = torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)


def test_warmup_loss_equals_a_loop_and_passes_over_sets_of_all_classes():
    logits_BC = logits_of()
    candidate_BC = (TARGET_BC > 0.2).float()
    candidate_BC[2] = 1.0
    partial, entropy = [], []
    for logits, candidates in zip(logits_BC.softmax(-1).tolist(), candidate_BC.tolist(), strict=True):
        if 0 in candidates:
            partial.append(-math.log(sum(p for p, y in zip(logits, candidates, strict=True) if y) + 1e-5))
        entropy.append(sum(p * math.log(p) for p in logits))
    assert len(partial) < 7
    naive = sum(partial) / 7 + sum(entropy) / 7
    assert losses.warmup_loss(logits_BC, candidate_BC).item() == pytest.approx(naive, rel=1e-5)


def test_warmup_loss_of_uninformed_images_alone_is_the_entropy_term():
    logits_BC = logits_of()
    naive = sum(sum(p * math.log(p) for p in row) for row in logits_BC.softmax(-1).tolist()) / 7
    assert losses.warmup_loss(logits_BC, torch.ones(7, 4)).item() == pytest.approx(naive, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sharpening_equals_its_formula(temperature):
    power = TARGET_BC ** (1 / temperature)
    torch.testing.assert_close(losses.sharpen(TARGET_BC, temperature), power / power.sum(1, keepdim=True))


def test_sharpening_and_restricting_bear_zeros():
    torch.testing.assert_close(losses.sharpen(torch.tensor([[1.0, 0.0]]), 0.5), torch.tensor([[1.0, 0.0]]))
    restricted = losses.within_candidates(
        torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]]), torch.tensor([[1.0, 1, 0]] * 2)
    )
    torch.testing.assert_close(restricted[0], torch.tensor([0.4, 0.6, 0.0]))
    assert restricted[1].isfinite().all()


@pytest.mark.parametrize("error", ["sum", "mean"])
def test_consistency_equals_a_loop(error):
    logits_BC = logits_of()
    total = 0.0
    for logits, target, partial in zip(logits_BC, TARGET_BC, PARTIAL_B.tolist(), strict=True):
        if partial:
            total += -(target * logits.log_softmax(0)).sum().item()
        else:
            squares = [(a - b) ** 2 for a, b in zip(logits.softmax(0).tolist(), target.tolist(), strict=True)]
            total += 0.7 * sum(squares) / (1 if error == "sum" else len(squares))
    loss = losses.consistency_loss(logits_BC, TARGET_BC, PARTIAL_B, unlabelled_weight=0.7, error=error)
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.parametrize("error", ["sum", "mean"])
def test_prototype_loss_equals_a_loop(error):
    projected_BD, prototype_CD = unit(7, 5), unit(4, 5, seed=3)
    total = 0.0
    for z, target, partial in zip(projected_BD, TARGET_BC.tolist(), PARTIAL_B.tolist(), strict=True):
        s = torch.tensor([float(z @ o) / 0.3 for o in prototype_CD]).softmax(0).tolist()
        if partial:
            total += sum(t * (math.log(t) - math.log(p)) for t, p in zip(target, s, strict=True))
        else:
            squares = [(p - t) ** 2 for t, p in zip(target, s, strict=True)]
            total += 0.7 * sum(squares) / (1 if error == "sum" else 4)
    loss = losses.prototype_loss(
        projected_BD, prototype_CD, TARGET_BC, PARTIAL_B, temperature=0.3, unlabelled_weight=0.7, error=error
    )
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.parametrize("mode", ["noisy", "sup"])
def test_contrast_equals_a_loop(mode):
    query_BD, key_KD = unit(7, 6), unit(12, 6, seed=4)
    class_B, class_K = torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.arange(12) % 3
    partial_K = torch.arange(12) % 4 != 1
    own_B = torch.tensor([3, 0, 1, 2, 4, 5, 6])
    total = 0.0
    for b in range(7):
        positive, denominator = [], 0.0
        for k in range(12):
            similarity = math.exp(float(query_BD[b] @ key_KD[k]) / 0.2)
            same = class_B[b] == class_K[k]
            trusted = mode == "sup" or (PARTIAL_B[b] and partial_K[k])
            own = k == own_B[b]
            if own or not same or trusted:
                denominator += similarity
            if own or (same and trusted):
                positive.append(similarity)
        total += -sum(math.log(p / denominator) for p in positive) / len(positive)
    queries, keys = losses.Projections(query_BD, class_B, PARTIAL_B), losses.Projections(key_KD, class_K, partial_K)
    arguments = (queries, keys, own_B)
    loss = losses.contrast_loss(*arguments, temperature=0.2, mode=mode)
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)
    some = losses.contrast_loss(*arguments, temperature=0.2, mode=mode, anchor_B=PARTIAL_B)
    assert 0 < some.item() < loss.item()


def test_contrast_has_a_gradient_where_all_but_the_own_key_is_ignored():
    query_BD = unit(3, 6).requires_grad_()
    none = torch.zeros(3, dtype=torch.bool)
    one = torch.zeros(3, dtype=torch.int64)
    loss = losses.contrast_loss(
        losses.Projections(query_BD, one, none),
        losses.Projections(unit(3, 6, seed=2), one, none),
        torch.arange(3),
        temperature=0.07,
        mode="noisy",
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert query_BD.grad.isfinite().all()


@pytest.mark.parametrize("n", [0, 1, 40])
def test_prototypes_move_as_one_image_after_the_other(n):
    prototype_CD, projected_BD = unit(4, 6), unit(n, 6, seed=5) if n else torch.zeros(0, 6)
    class_B = (torch.arange(n) * 7) % 3  # class 3 stays empty
    naive = prototype_CD.clone()
    for z, j in zip(projected_BD, class_B.tolist(), strict=True):
        naive[j] = 0.9 * naive[j] + 0.1 * z
    naive = F.normalize(naive, dim=1)
    torch.testing.assert_close(losses.move_prototypes(prototype_CD, projected_BD, class_B, 0.9), naive)


def test_an_empty_prototype_stays_finite():
    moved = losses.move_prototypes(torch.zeros(3, 6), unit(2, 6), torch.tensor([0, 0]), 0.999)
    assert moved[1:].abs().sum() == 0
    assert moved[0].norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["noisy", "sup"])
def test_contrast_with_queries_keys_and_queue_equals_a_loop(mode):
    """Every query is compared with the others of its batch as well, and not with itself."""
    query_BD, key_KD = unit(7, 6), unit(12, 6, seed=4)
    class_B, class_Q = torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.arange(5) % 3
    all_KD = torch.cat([query_BD, key_KD])
    class_K = torch.cat([class_B, class_B, class_Q])
    partial_K = torch.cat([PARTIAL_B, PARTIAL_B, torch.tensor([True, False, True, True, False])])
    total = 0.0
    for b in range(7):
        positive, denominator = [], 0.0
        for k in range(19):
            if k == b:
                continue
            similarity = math.exp(float(query_BD[b] @ all_KD[k]) / 0.2)
            own, same = k == b + 7, bool(class_B[b] == class_K[k])
            trusted = mode == "sup" or bool(PARTIAL_B[b] and partial_K[k])
            if own or not same or trusted:
                denominator += similarity
            if own or (same and trusted):
                positive.append(similarity)
        total += -sum(math.log(p / denominator) for p in positive) / len(positive)
    loss = losses.contrast_loss(
        losses.Projections(query_BD, class_B, PARTIAL_B),
        losses.Projections(all_KD, class_K, partial_K),
        torch.arange(7) + 7,
        self_B=torch.arange(7),
        temperature=0.2,
        mode=mode,
    )
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)
