import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.coreg import partial_labels
from raydapt.methods.coreg.partial_labels import annotate, annotate_votes, rows_per_block

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


def candidates(mode, **kwargs):
    return annotated(mode, **kwargs).candidate_NC.toarray().tolist()


def test_the_templates_vote_the_candidates_of_a_hand_made_case():
    # Image 0: the templates say 0, 1, 0. Image 1: 1, 0, 0. Image 2: 2, 2, 1. Image 3: ties, and class 2 at the last.
    assert candidates("prompts")[:3] == [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
    assert candidates("prompts")[3][2] == 1


def test_probabilities_are_the_mean_over_the_templates():
    naive = torch.zeros(4, 3)
    for n in range(4):
        for r in range(3):
            naive[n] += (10.0 * CLASS_RCD[r] @ FEATURE_ND[n]).softmax(0) / 3
    torch.testing.assert_close(torch.tensor(candidates("mean")), naive)
    for mode in ("prompts", "topk", "prob_ratio", "mean"):
        assert annotated(mode).likeliest_N.tolist() == naive.argmax(1).tolist()


@pytest.mark.parametrize("topk", [1, 2, 3, 9])
def test_topk_and_ratio_and_mean_read_the_mean_probability(topk):
    probability_NC = candidates("mean")
    for row, chosen in zip(probability_NC, candidates("topk", topk=topk), strict=True):
        assert sum(chosen) == min(topk, 3)
        assert chosen[row.index(max(row))] == 1
    for row, chosen in zip(probability_NC, candidates("prob_ratio"), strict=True):
        assert chosen == [float(value >= 0.5 * max(row)) for value in row]


def test_any_annotator_votes_as_a_template_does():
    probability_RNC = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    votes = annotate_votes(probability_RNC, mode="prompts", topk=2, ratio=0.5)
    for n in range(6):
        best = {max(range(5), key=lambda c: probability_RNC[r, n, c]) for r in range(4)}
        assert votes.candidate_NC.toarray()[n].tolist() == [float(c in best) for c in range(5)]
        naive = [sum(float(probability_RNC[r, n, c]) for r in range(4)) / 4 for c in range(5)]
        assert int(votes.likeliest_N[n]) == naive.index(max(naive))


def test_no_image_at_all_gives_no_rows():
    assert annotate(FEATURE_ND[:0], CLASS_RCD, 10.0, mode="prompts", topk=1, ratio=0.5).candidate_NC.shape == (0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prompts", "topk", "prob_ratio", "mean"])
def test_blocks_of_many_images_and_classes_equal_a_loop_over_images(monkeypatch, mode):
    """The dense rule, image by image, on 2,000 images and 100 classes that are cut into blocks of 300."""
    generator = torch.Generator().manual_seed(1)
    feature_ND = F.normalize(torch.randn(2000, 16, generator=generator), dim=1)
    class_RCD = F.normalize(torch.randn(5, 100, 16, generator=generator), dim=-1)
    monkeypatch.setattr(partial_labels, "_MOST_VOTES", 300 * 5 * 100)
    assert rows_per_block(5, 100) == 300
    found = annotate(feature_ND, class_RCD, 20.0, mode=mode, topk=3, ratio=0.5)
    candidate_NC, size_N = found.candidate_NC.toarray(), []
    assert candidate_NC.shape == (2000, 100)
    for n in range(2000):
        vote_RC = torch.stack([(20.0 * class_RCD[r] @ feature_ND[n]).softmax(0) for r in range(5)])
        mean_C = vote_RC.sum(0) / 5
        if mode == "prompts":
            chosen_C = torch.tensor([float(c in {int(vote_C.argmax()) for vote_C in vote_RC}) for c in range(100)])
        elif mode == "topk":
            chosen_C = torch.tensor([float((mean_C > mean_C[c]).sum() < 3) for c in range(100)])
        else:
            chosen_C = mean_C if mode == "mean" else (mean_C >= 0.5 * mean_C.max()).float()
        torch.testing.assert_close(torch.from_numpy(candidate_NC[n]), chosen_C, rtol=1e-4, atol=1e-6)
        assert int(found.likeliest_N[n]) == int(mean_C.argmax())
        size_N.append(int((chosen_C > 0).sum()))
    assert found.candidate_NC.nnz == sum(size_N)
    assert mode == "mean" or found.candidate_NC.nnz < 2000 * 10
