"""Accuracies against naive loops."""

import numpy as np
import pytest
import torch

from raydapt.methods.targets import sparse
from raydapt.run.accuracy import evaluate, harmonic_mean, pseudo_label_accuracy
from raydapt.run.evaluation import confusion_table


def naive_share(pairs):
    """Percent of (guess, truth) pairs that agree."""
    right = total = 0
    for guess, truth in pairs:
        total += 1
        right += guess == truth
    return 100.0 * right / total


@pytest.mark.parametrize(("images", "classes", "unknown"), [(1, 2, 0.0), (50, 3, 0.0), (400, 10, 0.3), (300, 200, 0.1)])
def test_evaluate_equals_naive_loops(images, classes, unknown):
    rng = np.random.default_rng(images)
    truth_N = np.where(rng.random(images) < unknown, -1, rng.integers(0, classes, images))
    guess_N = np.where(rng.random(images) < 0.4, truth_N.clip(0), rng.integers(0, classes, images))
    found = evaluate(guess_N, truth_N, classes)

    pairs = [(g, t) for g, t in zip(guess_N.tolist(), truth_N.tolist(), strict=True) if t >= 0]
    recalls = []
    for c in range(classes):
        of_class = [(g, t) for g, t in pairs if t == c]
        recalls.append(naive_share(of_class) if of_class else None)
        for d in range(classes):
            assert found.confusion_CC[c, d] == sum(g == d for g, _ in of_class)
    assert found.images == len(pairs)
    assert found.top1 == pytest.approx(naive_share(pairs))
    known = [recall for recall in recalls if recall is not None]
    assert found.mean_per_class == pytest.approx(sum(known) / len(known))
    assert found.per_class == tuple(None if r is None else pytest.approx(r) for r in recalls)
    assert found.seen is None
    assert set(found.as_dict()) == {"top1", "mean_per_class"}


def test_the_confusion_table_holds_the_cells_that_are_not_zero():
    names, truth_N, guess_N = ("oak", "birch", "elm"), [0, 0, 0, 2, 2, -1], [0, 1, 1, 2, 0, 1]
    rows = confusion_table(evaluate(guess_N, truth_N, 3).confusion_CC, names).to_pylist()
    counted = {}
    for t, g in zip(truth_N, guess_N, strict=True):
        if t >= 0:
            counted[names[t], names[g]] = counted.get((names[t], names[g]), 0) + 1
    assert {(row["truth"], row["predicted"]): row["count"] for row in rows} == counted
    assert confusion_table(torch.zeros(3, 3, dtype=torch.int64), names).num_rows == 0


def test_trzsl_is_micro_accuracy_over_all_classes_and_their_harmonic_mean():
    rng = np.random.default_rng(0)
    truth_N, guess_N = rng.integers(0, 6, 500), rng.integers(0, 6, 500)
    guess_N = np.where(rng.random(500) < 0.3 + 0.4 * (truth_N < 2), truth_N, guess_N)
    seen, unseen = [0, 1, 4], [2, 3, 5]
    found = evaluate(torch.from_numpy(guess_N), torch.from_numpy(truth_N), 6, seen, unseen)
    pairs = list(zip(guess_N.tolist(), truth_N.tolist(), strict=True))
    on_seen = naive_share([(g, t) for g, t in pairs if t in seen])
    on_unseen = naive_share([(g, t) for g, t in pairs if t in unseen])
    assert found.seen == pytest.approx(on_seen)
    assert found.unseen == pytest.approx(on_unseen)
    assert found.harmonic_mean == pytest.approx(2 / (1 / on_seen + 1 / on_unseen))
    assert set(found.as_dict()) == {"top1", "mean_per_class", "seen", "unseen", "harmonic_mean"}


def test_without_labels_there_is_nothing_to_say():
    for truth_N in (None, np.full(3, -1)):
        found = evaluate(np.array([0, 1, 1]), truth_N, 2, [0], [1])
        assert found.as_dict() == {"top1": None, "mean_per_class": None}
        assert found.confusion_CC is None
        assert found.images == 0


def test_unseen_classes_without_images_give_no_harmonic_mean():
    found = evaluate(np.array([0, 0]), np.array([0, 0]), 2, [0], [1])
    assert (found.seen, found.unseen, found.harmonic_mean) == (100.0, None, None)
    assert harmonic_mean(0.0, 0.0) == 0.0


@pytest.mark.parametrize("kind", ["one-hot", "candidates", "soft"])
def test_pseudo_label_accuracy_equals_naive_loops(kind):
    generator = torch.Generator().manual_seed(0)
    truth_N = torch.randint(-1, 4, (60,), generator=generator)
    index_M = torch.randperm(60, generator=generator)[:40]
    target_MC = torch.rand(40, 4, generator=generator)
    if kind == "one-hot":
        target_MC = torch.nn.functional.one_hot(target_MC.argmax(dim=1), 4).float()
    if kind == "candidates":
        target_MC = (target_MC > 0.5).float()
        target_MC[:, 0] = 1.0
    found = pseudo_label_accuracy(index_M, target_MC, truth_N)
    assert pseudo_label_accuracy(index_M, sparse(target_MC), truth_N) == found

    top, holds, known = 0.0, 0, 0
    for i, weights in zip(index_M.tolist(), target_MC.tolist(), strict=True):
        truth = int(truth_N[i])
        if truth < 0:
            continue
        known += 1
        heaviest = [c for c in range(4) if weights[c] == max(weights)]
        top += 1 / len(heaviest) if truth in heaviest else 0
        holds += weights[truth] > 0
    assert found.selected == 40
    assert found.top1 == pytest.approx(100 * top / known)
    assert found.holds_truth == pytest.approx(100 * holds / known)


def test_pseudo_label_accuracy_without_labels_or_selection():
    target_MC = torch.eye(2)
    assert pseudo_label_accuracy([0, 1], target_MC, None).top1 is None
    assert pseudo_label_accuracy([0, 1], target_MC, [-1, -1]).selected == 2
    nothing = pseudo_label_accuracy([], torch.zeros(0, 2), [0, 1])
    assert (nothing.selected, nothing.top1, nothing.holds_truth) == (0, None, None)
