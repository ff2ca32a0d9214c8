import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.partial_labels import PartialLabels
from raydapt.methods.coreg.partial_labels import annotate, annotate_votes, restrict_classes

# Three templates, three classes, two dimensions: a case that can be followed by hand.
CLASS_RCD = F.normalize(
    torch.tensor(
        [
            [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]],
            [[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]],
            [[1.0, 0.1], [-1.0, 0.0], [0.0, -1.0]],
        ]
    ),
    dim=-1,
)
FEATURE_ND = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), dim=-1)


def annotated(mode, **kwargs):
    return annotate(FEATURE_ND, CLASS_RCD, 10.0, mode=mode, **({"topk": 2, "ratio": 0.5} | kwargs))


def test_the_templates_vote_the_candidates_of_a_hand_made_case():
    # Image 0: the templates say 0, 1, 0. Image 1: 1, 0, 0. Image 2: 2, 2, 1. Image 3: ties, and class 2 at the last.
    assert annotated("prompts").candidate_NC[:3].tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
    assert annotated("prompts").candidate_NC[3, 2] == 1


def test_probabilities_are_the_mean_over_the_templates():
    naive = torch.zeros(4, 3)
    for n in range(4):
        for r in range(3):
            naive[n] += (10.0 * CLASS_RCD[r] @ FEATURE_ND[n]).softmax(0) / 3
    for mode in ("prompts", "topk", "prob_ratio", "mean"):
        torch.testing.assert_close(annotated(mode).probability_NC, naive)


@pytest.mark.parametrize("topk", [1, 2, 3, 9])
def test_topk_and_ratio_and_mean_read_the_mean_probability(topk):
    probability_NC = annotated("mean").probability_NC
    for row, candidates in zip(
        probability_NC.tolist(), annotated("topk", topk=topk).candidate_NC.tolist(), strict=True
    ):
        assert sum(candidates) == min(topk, 3)
        assert candidates[row.index(max(row))] == 1
    for row, candidates in zip(probability_NC.tolist(), annotated("prob_ratio").candidate_NC.tolist(), strict=True):
        assert candidates == [float(value >= 0.5 * max(row)) for value in row]
    assert torch.equal(annotated("mean").candidate_NC, probability_NC)


def test_any_annotator_votes_as_a_template_does():
    probability_RNC = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    votes = annotate_votes(probability_RNC, mode="prompts", topk=2, ratio=0.5)
    for n in range(6):
        best = {max(range(5), key=lambda c: probability_RNC[r, n, c]) for r in range(4)}
        assert votes.candidate_NC[n].tolist() == [float(c in best) for c in range(5)]
        naive = [sum(float(probability_RNC[r, n, c]) for r in range(4)) / 4 for c in range(5)]
        torch.testing.assert_close(votes.probability_NC[n], torch.tensor(naive))


def test_no_image_at_all_gives_no_rows():
    assert annotate(FEATURE_ND[:0], CLASS_RCD, 10.0, mode="prompts", topk=1, ratio=0.5).candidate_NC.shape == (0, 3)


def test_restricting_the_classes_leaves_no_set_empty():
    labels = PartialLabels(
        candidate_NC=torch.tensor([[1.0, 1, 0], [1, 0, 0]]),
        probability_NC=torch.tensor([[0.5, 0.4, 0.1], [0.8, 0, 0.2]]),
    )
    assert restrict_classes(labels, torch.tensor([1, 2])).candidate_NC.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert restrict_classes(labels, torch.arange(3)) is labels
