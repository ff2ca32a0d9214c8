"""The student of fusion: its loss against a naive loop, its minimum, and what must not matter to it."""

import math

import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.fusion.fused_answers import fused_answers
from raydapt.methods.fusion.student import _MOST_ELEMENTS, learn_student, student_loss, taught_rows
from raydapt.methods.guard import Evidence


@pytest.fixture(params=[16.0, 100.0])
def problem(request):
    """Features [40, 12], soft labels [40, 5], texts [5, 12] and a logit scale."""
    generator = torch.Generator().manual_seed(0)
    text_CD = F.normalize(torch.randn(5, 12, generator=generator), dim=1)
    class_N = torch.arange(40) % 5
    feature_ND = F.normalize(text_CD[class_N] + 0.6 * torch.randn(40, 12, generator=generator), dim=1)
    target_NC = (3 * F.one_hot(class_N, 5) + torch.randn(40, 5, generator=generator)).softmax(dim=1)
    return feature_ND, target_NC, text_CD, request.param


def test_the_loss_is_the_naive_one(problem):
    feature_ND, target_NC, text_CD, scale = problem
    weight_CD, bias_C = text_CD + 0.1, torch.linspace(-1, 1, 5)
    total = 0.0
    for feature_D, target_C in zip(feature_ND, target_NC, strict=True):
        logits = [scale * float(w @ feature_D) + float(b) for w, b in zip(weight_CD, bias_C, strict=True)]
        highest = max(logits)
        norm = highest + math.log(sum(math.exp(x - highest) for x in logits))
        total -= sum(float(q) * (x - norm) for q, x in zip(target_C, logits, strict=True))
    away = sum(float(a - t) ** 2 for a, t in zip(weight_CD.flatten(), text_CD.flatten(), strict=True))
    naive = total / 40 + 0.7 * scale * away / 5 + 0.01 * sum(float(b) ** 2 for b in bias_C) / 5
    found = student_loss(weight_CD, bias_C, feature_ND, target_NC, text_CD, scale=scale, hold=0.7)
    assert float(found) == pytest.approx(naive, rel=1e-5)


def test_it_finds_the_minimum(problem):
    feature_ND, target_NC, text_CD, scale = problem
    head = learn_student(feature_ND, target_NC, text_CD, scale=scale, hold=0.3)
    weight_CD, bias_C = text_CD + head.weight_CD / scale, head.bias_C

    def loss(weight_CD, bias_C):
        return float(student_loss(weight_CD, bias_C, feature_ND, target_NC, text_CD, scale=scale, hold=0.3))

    least = loss(weight_CD, bias_C)
    assert least < loss(text_CD, torch.zeros(5))
    for seed in range(5):
        noise = torch.Generator().manual_seed(seed)
        moved_CD = weight_CD + 0.02 * torch.randn(5, 12, generator=noise)
        assert least < loss(moved_CD, bias_C + 0.1 * torch.randn(5, generator=noise))


def test_the_order_of_images_and_of_classes_does_not_matter(problem):
    feature_ND, target_NC, text_CD, scale = problem
    head = learn_student(feature_ND, target_NC, text_CD, scale=scale, hold=0.3)
    row_N, class_C = torch.randperm(40), torch.randperm(5)
    other = learn_student(feature_ND[row_N], target_NC[row_N][:, class_C], text_CD[class_C], scale=scale, hold=0.3)
    logit_NC = feature_ND @ head.weight_CD.T + head.bias_C
    torch.testing.assert_close(
        feature_ND @ other.weight_CD.T + other.bias_C, logit_NC[:, class_C], atol=0.02 * scale, rtol=0.05
    )


def test_held_firmly_it_is_zero_shot(problem):
    feature_ND, target_NC, text_CD, scale = problem
    head = learn_student(feature_ND, target_NC, text_CD, scale=scale, hold=1e6)
    assert float(head.weight_CD.abs().max()) < 1e-3 * scale


def test_of_many_images_an_even_sample_is_learned_from():
    assert taught_rows(7, 3).tolist() == list(range(7))
    row_M = taught_rows(10**6, 1000)
    assert len(row_M) == _MOST_ELEMENTS // 1000
    assert (row_M[0], row_M[-1]) == (0, 10**6 - 1)
    gap = row_M.diff()
    assert int(gap.min()) >= 14
    assert int(gap.max()) <= 15


def saw(*, contradicted: float = 0.0, moved: float = 0.0) -> Evidence:
    return Evidence(
        contradicted=contradicted,
        expected=0.0,
        moved=moved,
        doubt=0.1,
        changed=0.1,
        neighbours_before=0.5,
        neighbours_after=0.5,
    )


def test_a_classifier_without_a_gain_is_fused_as_it_is():
    assert fused_answers(["zero-shot", "mean of both"], [saw(), saw(contradicted=0.1)]) == ["adapted", "mean of both"]


def test_where_one_does_harm_all_answer_as_their_guards_say():
    verdicts = ["zero-shot", "mean of both", "adapted"]
    assert fused_answers(verdicts, [saw(), saw(moved=0.2), saw()]) == verdicts


def test_a_run_without_a_guard_is_fused_as_it_is():
    assert fused_answers(["adapted"], [None]) == ["adapted"]
