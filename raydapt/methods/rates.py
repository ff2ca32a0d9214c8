"""``train.learning_rate=auto``: a rate that follows from the width, the number of classes and the number of steps.

A rate that was chosen with one model does not carry over to another: gradients grow with the logit scale, AdamW's step
with the square root of the width, and the way that is gone with the number of steps. These rules fix that way: how far
a class embedding can travel in a round, were all steps to point in one direction. SGD's gradient is brought to length 1
for it, which takes the logit scale out. No label is read. How the ways were chosen is told in docs/rates.md.

Legend: C classes, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from raydapt.settings.groups import TrainSettings

PROMPT_STEP = 0.016
"""Length of a step for prompts: the published rate 0.02 times the length 0.8 that gradients are cut to (CPL's code)."""
WAY = 0.3
"""How far a class embedding can travel in a round, in radians: 17 degrees."""
UNKNOWN_IMAGES = 10_000
"""Taken where a source does not tell how many images it has before it is read."""


class Rate(NamedTuple):
    """What ``auto`` stands for."""

    learning_rate: float
    unit_gradient: bool


def steps_of_round(train: TrainSettings, n_images: int | None) -> int:
    """Optimiser steps of a round that learns from all images, as the training loop counts them."""
    n_images = UNKNOWN_IMAGES if n_images is None else n_images
    steps = max(1, n_images // train.batch_size) * train.epochs
    return steps if train.max_steps_per_round is None else min(steps, train.max_steps_per_round)


def summed_shares(train: TrainSettings, steps: int) -> float:
    """The sum over a round of the learning rate's shares: a line up and a cosine down are a half on average."""
    return steps * (1 + train.final_rate_share) / 2


def adamw_rate(way: float, train: TrainSettings, *, steps: int, width: int, scale: float = 1.0) -> Rate:
    """The rate at which AdamW moves a vector of D values by `way` in a round, were every step as the one before.

    A step moves each value by the rate (Kingma and Ba, ICLR 2015, section 2.1), so the vector by rate sqrt(D):
    rate = way / (scale sqrt(D) sum of shares).

    Args:
        way: In radians of a unit vector.
        train: Schedule.
        steps: Of a round.
        width: D.
        scale: Factor of the learned vector in the class embedding (alpha of the task residuals).
    """
    return Rate(way / (scale * math.sqrt(width) * summed_shares(train, steps)), unit_gradient=False)


def sgd_rate(way: float, train: TrainSettings, *, steps: int, n_classes: int, scale: float = 1.0) -> Rate:
    """The rate at which SGD with gradients of length 1 moves C vectors by `way` each in a round.

    A step of length rate is shared by C vectors, rate / sqrt(C) each, and momentum m makes 1 / (1 - m) of it:
    rate = way sqrt(C) (1 - m) / (scale sum of shares). Arguments as in `adamw_rate`.
    """
    per_step = way * (1 - train.momentum) / (scale * summed_shares(train, steps))
    return Rate(per_step * math.sqrt(n_classes), unit_gradient=True)
