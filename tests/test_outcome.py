"""What is measured of pseudo-labels and of synthetic images, against loops."""

import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.synthetic_images import SyntheticImages
from raydapt.methods.air.outcome import synthetic_metrics
from raydapt.methods.contract import PseudoLabels
from raydapt.run.evaluation import pseudo_labels_table, round_metrics


def test_every_judge_is_measured_on_all_unlabelled_images_with_a_label():
    class_N = torch.tensor([0, 1, 2, -1, 1, 0])
    unlabelled_U = torch.tensor([1, 2, 3, 5])
    labels = PseudoLabels(
        index_M=torch.tensor([1]),
        target_MC=F.one_hot(torch.tensor([1]), 3).float(),
        confidence_M=torch.ones(1),
        class_M=torch.tensor([1]),
        guesses={"text": torch.tensor([1, 0, 0, 0]), "images": torch.tensor([1, 2, 1, 2])},
    )
    (metrics,) = round_metrics([labels], class_N, unlabelled_U)
    assert metrics["classifiers"] == {"text": pytest.approx(200 / 3), "images": pytest.approx(200 / 3)}
    (metrics,) = round_metrics([labels], torch.full((6,), -1), unlabelled_U)
    assert metrics["classifiers"] == {"text": None, "images": None}


def test_a_single_judge_is_not_mentioned():
    labels = PseudoLabels(
        index_M=torch.tensor([0]),
        target_MC=torch.ones(1, 2),
        confidence_M=torch.ones(1),
        class_M=torch.tensor([0]),
    )
    assert "classifiers" not in round_metrics([labels], torch.tensor([0]), torch.tensor([0]))[0]


@pytest.mark.parametrize("images", [0, 7])
def test_the_history_is_sparse_and_its_table_has_every_target(images):
    target_MC = (torch.rand(images, 4, generator=torch.Generator().manual_seed(0)) - 0.5).clamp(min=0)
    index_M = torch.arange(images).flip(0)
    whole = PseudoLabels(index_M=index_M, target_MC=target_MC, confidence_M=torch.ones(images), class_M=index_M % 4)
    kept, names, ids = whole.kept, ("a", "b", "c", "d"), [f"image {i}" for i in range(images)]
    assert kept.target_MC.nnz == int((target_MC > 0).sum())
    expected = []
    for index, row in zip(index_M.tolist(), target_MC.tolist(), strict=True):
        chosen = {name: weight for name, weight in zip(names, row, strict=True) if weight}
        expected.append({"round": 1, "id": ids[index], "classes": [*chosen], "weights": [*chosen.values()]})
    assert pseudo_labels_table([kept], ids, names).to_pylist() == expected
    assert pseudo_labels_table([whole], ids, names).to_pylist() == expected


def test_acceptance_counts_the_images_that_zero_shot_takes_for_their_class():
    generator = torch.Generator().manual_seed(0)
    feature_MD, class_CD = torch.randn(60, 8, generator=generator), torch.randn(5, 8, generator=generator)
    class_M = torch.arange(60) % 4  # no image of the last class
    metrics = synthetic_metrics(SyntheticImages(feature_MD=feature_MD, class_M=class_M), class_CD, "abcde", top=2)
    accepted, within = [0] * 5, 0
    for feature_D, c in zip(feature_MD, class_M.tolist(), strict=True):
        ranked = sorted(range(5), key=lambda k: -float(feature_D @ class_CD[k]))
        accepted[c] += ranked[0] == c
        within += c in ranked[:2]
    assert metrics["images"] == 60
    assert metrics["accepted"] == pytest.approx(100 * sum(accepted) / 60)
    assert metrics["accepted_in_top"] == pytest.approx(100 * within / 60)
    expected = [
        {"name": n, "images": 15, "accepted": pytest.approx(100 * accepted[c] / 15)} for c, n in enumerate("abcd")
    ]
    assert metrics["per_class"] == [*expected, {"name": "e", "images": 0, "accepted": None}]
