"""Evidence against loops, and verdicts on classifiers that are better, wrong and collapsed."""

from dataclasses import replace

import pytest
import torch

from raydapt.methods import guard
from raydapt.methods.guard import evidence, judge
from raydapt.methods.transduct.fit import fit
from tests.clip_like import ClipLike, clip_like


@pytest.fixture(scope="module")
def drawn():
    return clip_like(ClipLike(n_classes=8, per_class=25, zero_shot=0.7, width=64), 0)


@pytest.fixture(scope="module", name="zero_NC")
def zero_probabilities(drawn):
    return (drawn.scale * drawn.feature_ND @ drawn.text_CD.T).softmax(dim=1)


@pytest.fixture(scope="module", name="adapted_NC")
def adapted_probabilities(drawn):
    return fit(drawn.feature_ND, drawn.text_CD, drawn.scale).probabilities()


def test_evidence_is_the_naive_one(drawn, zero_NC, adapted_NC):
    found = evidence(zero_NC, adapted_NC, drawn.feature_ND)
    n_images, n_classes = zero_NC.shape
    zero = [max(range(n_classes), key=lambda c: float(row[c])) for row in zero_NC]
    adapted = [max(range(n_classes), key=lambda c: float(row[c])) for row in adapted_NC]
    weight = [float(row.max()) ** 4 for row in zero_NC]
    against = sum(w for w, a, b in zip(weight, zero, adapted, strict=True) if a != b) / sum(weight)
    doubt = sum(w * (1 - float(row.max())) for w, row in zip(weight, zero_NC, strict=True)) / sum(weight)
    assert found.contradicted == pytest.approx(against, abs=1e-6)
    assert found.expected == pytest.approx(doubt, abs=1e-6)
    assert found.excess == pytest.approx(against - doubt, abs=1e-6)
    assert found.changed == pytest.approx(sum(a != b for a, b in zip(zero, adapted, strict=True)) / n_images)
    assert found.doubt == pytest.approx(sum(1 - float(row.max()) for row in zero_NC) / n_images, abs=1e-6)
    moved = sum(abs(zero.count(c) - adapted.count(c)) for c in range(n_classes)) / n_images / 2
    assert found.moved == pytest.approx(moved)
    for value, answers in ((found.neighbours_before, zero), (found.neighbours_after, adapted)):
        same = 0.0
        for i in range(n_images):
            others = sorted(
                (j for j in range(n_images) if j != i), key=lambda j: -float(drawn.feature_ND[i] @ drawn.feature_ND[j])
            )
            same += sum(answers[j] == answers[i] for j in others[:5]) / 5 / n_images
        chance = sum((answers.count(c) / n_images) ** 2 for c in range(n_classes))
        assert value == pytest.approx((same - chance) / (1 - chance), abs=1e-6)


def test_views_change_what_the_agreement_of_neighbours_is_compared_with(drawn, zero_NC, adapted_NC):
    views_NC = zero_NC[torch.randperm(len(zero_NC), generator=torch.Generator().manual_seed(0))]
    plain, of_views = evidence(zero_NC, adapted_NC, drawn.feature_ND), evidence(views_NC, adapted_NC, drawn.feature_ND)
    found = evidence(zero_NC, adapted_NC, drawn.feature_ND, views_NC=views_NC)
    assert found == replace(plain, neighbours_before=of_views.neighbours_before)
    assert found.neighbours_before < plain.neighbours_before - 0.2


@pytest.mark.parametrize(
    ("loss", "moved_classes", "verdict"),
    [(-0.05, 0, "mean of both"), (0.05, 0, "mean of both"), (0.15, 0, "zero-shot"), (-0.5, 7, "zero-shot")],
)
def test_a_classifier_of_other_views_needs_no_gain_and_must_do_no_harm(
    drawn, zero_NC, monkeypatch, loss, moved_classes, verdict
):
    """Of the agreement that was left to gain, `loss` is lost; the last classes are answered as the first one."""
    agreement = iter([0.5, 0.5 - 0.5 * loss])
    monkeypatch.setattr(guard, "_alike", lambda *_: next(agreement))
    adapted_NC = zero_NC.clone()
    adapted_NC[:, 0] += adapted_NC[:, 8 - moved_classes :].sum(dim=1)
    adapted_NC[:, 8 - moved_classes :] = 0
    assert judge(zero_NC, adapted_NC, drawn.feature_ND, views_NC=zero_NC).verdict == verdict


def test_orders_do_not_matter(drawn, zero_NC, adapted_NC):
    image_N = torch.randperm(len(zero_NC), generator=torch.Generator().manual_seed(0))
    class_C = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    expected = evidence(zero_NC, adapted_NC, drawn.feature_ND)
    found = evidence(zero_NC[image_N][:, class_C], adapted_NC[image_N][:, class_C], 2 * drawn.feature_ND[image_N])
    for name in ("contradicted", "expected", "moved", "doubt", "changed", "neighbours_before", "neighbours_after"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-6)


def test_the_sample_does_not_depend_on_the_order_of_images(drawn, zero_NC, adapted_NC, monkeypatch):
    monkeypatch.setattr(guard, "SAMPLE", 50)
    image_N = torch.randperm(len(zero_NC), generator=torch.Generator().manual_seed(0))
    expected = evidence(zero_NC, adapted_NC, drawn.feature_ND)
    found = evidence(zero_NC[image_N], adapted_NC[image_N], drawn.feature_ND[image_N])
    assert found.neighbours_after == pytest.approx(expected.neighbours_after, abs=1e-6)


def test_a_better_classifier_is_kept(drawn, zero_NC, adapted_NC):
    found = judge(zero_NC, adapted_NC, drawn.feature_ND)
    right = [(p.argmax(dim=1) == drawn.label_N).double().mean() for p in (zero_NC, adapted_NC)]
    assert right[1] > right[0] + 0.05
    assert found.verdict == "adapted"
    assert found.probabilities(zero_NC, adapted_NC) is adapted_NC
    assert found.as_metrics()["verdict"] == "adapted"
    assert "kept" in found.sentence


def test_a_classifier_that_exchanges_classes_is_rejected(drawn, zero_NC, adapted_NC):
    exchanged_NC = adapted_NC.roll(1, dims=1)  # neighbours agree as much as before: the contradictions tell
    found = judge(zero_NC, exchanged_NC, drawn.feature_ND)
    assert found.evidence.relative_gain > guard.CLEAR_GAIN
    assert found.verdict == "zero-shot"
    assert found.probabilities(zero_NC, exchanged_NC) is zero_NC


def test_a_collapsed_classifier_is_rejected(drawn, zero_NC):
    collapsed_NC = torch.zeros_like(zero_NC)
    collapsed_NC[:, 2] = 1
    found = judge(zero_NC, collapsed_NC, drawn.feature_ND)
    assert found.evidence.neighbours_after == 0
    assert found.verdict == "zero-shot"


def test_no_change_keeps_zero_shot(drawn, zero_NC):
    found = judge(zero_NC, zero_NC.clone(), drawn.feature_ND)
    assert found.evidence.contradicted == found.evidence.moved == found.evidence.gain == 0
    assert found.verdict == "zero-shot"


def test_the_fallback_between_is_the_mean(drawn, zero_NC, adapted_NC, monkeypatch):
    monkeypatch.setattr(guard, "CLEAR_GAIN", 0.9)
    found = judge(zero_NC, adapted_NC, drawn.feature_ND)
    assert found.verdict == "mean of both"
    torch.testing.assert_close(found.probabilities(zero_NC, adapted_NC), (zero_NC + adapted_NC) / 2)


def test_one_image():
    zero_NC = torch.tensor([[0.9, 0.1]])
    assert judge(zero_NC, zero_NC, torch.ones(1, 3)).verdict == "zero-shot"


def test_class_shares_that_move_farther_than_zero_shot_doubts_are_not_believed():
    """Nine of ten images are of one class, and zero-shot is nearly sure of it; the adapted one calls them equal."""
    class_N = torch.arange(200) % 10 == 0
    feature_ND = torch.nn.functional.one_hot(class_N.long(), 2).float()
    zero_NC = torch.where(class_N[:, None], torch.tensor([0.1, 0.9]), torch.tensor([0.8, 0.2]))
    equal_N = torch.arange(200) < 100
    adapted_NC = torch.where(equal_N[:, None], torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9]))
    found = judge(zero_NC, adapted_NC, feature_ND)
    assert found.evidence.moved == pytest.approx(0.4)
    assert found.evidence.doubt == pytest.approx(0.9 * 0.2 + 0.1 * 0.1)
    assert found.verdict == "zero-shot"


@pytest.mark.parametrize(("moved", "verdict"), [(0.11, "adapted"), (0.125, "mean of both"), (0.14, "zero-shot")])
def test_a_little_farther_than_that_keeps_half_of_it(monkeypatch, moved, verdict):
    told = {"contradicted": 0.0, "expected": 0.1, "doubt": 0.1, "changed": 0.1}
    found = guard.Evidence(**told, moved=moved, neighbours_before=0.5, neighbours_after=0.8)
    monkeypatch.setattr(guard, "evidence", lambda *_, **__: found)
    probability_NC = torch.full((2, 2), 0.5)
    assert judge(probability_NC, probability_NC, torch.ones(2, 3)).verdict == verdict


def test_a_gain_counts_by_what_was_left_to_gain():
    """From 0.9 to 0.92 is a fifth of what there was to gain; from 0.2 to 0.22 it is a fortieth."""
    told = {"contradicted": 0.0, "expected": 0.1, "moved": 0.0, "doubt": 0.2, "changed": 0.1}
    for before, expected in ((0.9, 0.2), (0.2, 0.025)):
        found = guard.Evidence(**told, neighbours_before=before, neighbours_after=before + 0.02)
        assert found.relative_gain == pytest.approx(expected)
    assert guard.Evidence(**told, neighbours_before=1.0, neighbours_after=1.0).relative_gain == 0


@pytest.mark.parametrize(
    ("contradicted", "moved", "neighbours", "left"),
    [
        (0.14, 0.11, 0.79, "adapted"),
        (0.16, 0.11, 0.79, "mean of both"),
        (0.26, 0.11, 0.79, "zero-shot"),
        (0.1, 0.125, 0.79, "mean of both"),
        (0.1, 0.14, 0.79, "zero-shot"),
        (0.1, 0.1, 0.77, "zero-shot"),
        (0.1, 0.1, 0.99, "adapted"),
    ],
)
def test_a_clear_loss_is_a_sign_of_harm_and_no_gain_is_none(contradicted, moved, neighbours, left):
    told = {"expected": 0.1, "doubt": 0.1, "changed": 0.1, "neighbours_before": 0.8, "neighbours_after": neighbours}
    assert guard.Evidence(contradicted=contradicted, moved=moved, **told).without_harm == left
