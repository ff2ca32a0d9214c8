"""What a training counts, over more steps than there is room for at first."""

import math

import pytest
import torch

from raydapt.train.tally import Tally


def test_the_mean_is_that_of_all_losses_since_the_last_call():
    tally, losses = Tally(), [1.5 * step for step in range(200)]
    for loss in losses:
        tally.add(torch.tensor(loss), 0.5, 3)
        assert tally.first_not_finite() is None
    assert tally.mean_loss() == pytest.approx(sum(losses) / 200)
    assert tally.images_per_s() == 6
    tally.add(torch.tensor(7.0), 1.0, 4)
    assert (tally.mean_loss(), tally.images_per_s()) == (7.0, 4.0)


@pytest.mark.parametrize("looked_at", [0, 60, 70])
def test_the_first_loss_that_is_no_number_is_found_among_those_not_looked_at_yet(looked_at):
    tally = Tally()
    for step in range(100):
        tally.add(torch.tensor(math.nan if step in (80, 90) else 1.0), 0.1, 1)
        if step + 1 == looked_at:
            assert tally.first_not_finite() is None
    assert tally.first_not_finite() == 19
    assert tally.first_not_finite() is None
