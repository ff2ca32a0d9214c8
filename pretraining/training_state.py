"""What the trainings of the miniature models share: learning rates, a step of the optimisers, an average, resuming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


def rate_factor(done_share: float, *, warmup_share: float, decay_share: float) -> float:
    """The learning rate's factor after ``done_share`` of the run: up, level, and linearly down to zero."""
    rising = done_share / warmup_share if warmup_share else 1.0
    falling = (1 - done_share) / decay_share if decay_share else 1.0
    return max(0.0, min(1.0, rising, falling))


class StepSettings(Protocol):
    """The settings that a `TrainingState` reads."""

    @property
    def samples(self) -> int:
        """Samples of the whole training."""

    @property
    def batch_size(self) -> int:
        """Samples per step."""

    @property
    def warmup_share(self) -> float:
        """Share of the run over which the rates rise."""

    @property
    def decay_share(self) -> float:
        """Share of the run over which they fall."""

    @property
    def clip_grad_norm(self) -> float:
        """Longest gradient."""

    @property
    def average_decay(self) -> float:
        """Of the average, per step."""


class TrainingState:
    """One worker's training state.

    Attributes:
        model: What is trained.
        average: Exponential moving average of its weights: what is exported.
        step: Steps done.
        steps: Steps of the whole training.
        seconds: Wall time spent training, over all resumptions.
    """

    model: Any
    average: dict[str, Tensor]
    step: int
    steps: int
    seconds: float

    def __init__(self, settings: StepSettings, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._settings, self.model, self.optimizers = settings, model, list(optimizers)
        self._base_rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.steps = settings.samples // settings.batch_size
        self.step, self.seconds = 0, 0.0

    def learn(self, loss: Tensor) -> None:
        """Moves the weights by the gradient of ``loss``, and the average after them."""
        settings = self._settings
        factor = rate_factor(
            (self.step + 1) / self.steps, warmup_share=settings.warmup_share, decay_share=settings.decay_share
        )
        for optimizer, rates in zip(self.optimizers, self._base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._move_average()

    @torch.no_grad()
    def _move_average(self) -> None:
        # Early on the average follows closely, so that it never remembers the random start.
        decay = min(self._settings.average_decay, self.step / (self.step + 10))
        current = self.model.state_dict()
        floats = [name for name, tensor in current.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in floats], [current[name] for name in floats], 1 - decay)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [one.state_dict() for one in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state``."""
        self.model.load_state_dict(state["model"])
        self.average = dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
