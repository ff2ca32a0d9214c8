import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from raydapt.methods.coreg.clean_noisy import align, clean_probability, division_loss

PROBABILITY_NC = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
CANDIDATE_NC = (torch.rand(50, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float()
CANDIDATE_NC[:, 0] = 1.0


def test_loss_equals_a_loop():
    losses = [
        -np.log(max(p for p, y in zip(row, candidates, strict=True) if y))
        for row, candidates in zip(PROBABILITY_NC.tolist(), CANDIDATE_NC.tolist(), strict=True)
    ]
    naive = [(loss - min(losses)) / (max(losses) - min(losses)) for loss in losses]
    torch.testing.assert_close(division_loss(PROBABILITY_NC, CANDIDATE_NC), torch.tensor(naive, dtype=torch.float32))


def test_alignment_equals_a_loop_and_bears_a_class_that_nobody_predicts():
    mean = PROBABILITY_NC.mean(0)
    naive = torch.stack([(row * 0.25 / mean) / (row * 0.25 / mean).sum() for row in PROBABILITY_NC])
    torch.testing.assert_close(align(PROBABILITY_NC, PROBABILITY_NC.mean(0)), naive)
    empty = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])
    assert align(empty, empty.mean(0)).isfinite().all()
    assert align(empty, empty.mean(0))[:, 2].sum() == 0


def test_the_component_with_the_lower_mean_is_clean():
    generator = np.random.default_rng(0)
    loss_N = torch.tensor(np.concatenate([generator.normal(0.1, 0.03, 80), generator.normal(0.8, 0.05, 20)]))
    clean_N = clean_probability(loss_N.float(), seed=3)
    assert (clean_N[:80] > 0.9).all()
    assert (clean_N[80:] < 0.1).all()
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=3)
    mixture.fit(loss_N.float().double().numpy()[:, None])
    naive = mixture.predict_proba(loss_N.float().double().numpy()[:, None])[:, mixture.means_.argmin()]
    np.testing.assert_allclose(clean_N.numpy(), naive, rtol=1e-6, atol=1e-6)
    assert torch.equal(clean_N, clean_probability(loss_N.float(), seed=3))


@pytest.mark.parametrize("loss_N", [torch.zeros(9), torch.full((9,), 0.3), torch.tensor([0.7])])
def test_losses_that_tell_nothing_apart_believe_every_image(loss_N):
    assert clean_probability(loss_N, seed=0).tolist() == [1.0] * len(loss_N)


def test_the_same_candidate_everywhere_is_divided_without_a_crash():
    candidate_NC = torch.zeros(50, 4)
    candidate_NC[:, 2] = 1.0
    loss_N = division_loss(PROBABILITY_NC, candidate_NC)
    assert loss_N.min() == 0
    assert loss_N.max() == 1
    assert clean_probability(loss_N, seed=0).isfinite().all()
    same = division_loss(torch.full((5, 4), 0.25), candidate_NC[:5])
    assert same.tolist() == [0.0] * 5


def test_an_image_without_candidates_is_the_least_believed():
    candidate_NC = CANDIDATE_NC.clone()
    candidate_NC[7] = 0
    assert division_loss(PROBABILITY_NC, candidate_NC).argmax() == 7
