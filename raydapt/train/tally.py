"""What a training counts between two log lines and two checkpoints.

Legend: S steps since the last log line.
"""

import torch
from torch import Tensor

from raydapt.train.checkpoint import TrainState

_LEAST_ROOM = 64


class Tally:
    """Loss, time and images since the last log line and since the last checkpoint."""

    def __init__(self) -> None:
        # In one tensor: thousands of kept scalars would lie between the freed blocks of a step and keep them apart.
        self._loss_S = torch.empty(0)
        self._steps = self._seen = 0
        self.seconds = self._logged_s = 0.0
        self._images = self._logged_images = 0

    def add(self, loss: Tensor, seconds: float, images: int) -> None:
        """Counts a step."""
        if self._steps == len(self._loss_S):
            self._loss_S = torch.cat([self._loss_S.to(loss), loss.new_empty(max(_LEAST_ROOM, self._steps))])
        self._loss_S[self._steps] = loss
        self._steps += 1
        self.seconds += seconds
        self._logged_s += seconds
        self._images += images
        self._logged_images += images

    def first_not_finite(self) -> int | None:
        """How many steps ago the first loss since the last log line was that is NaN or infinite."""
        fresh_S = self._loss_S[self._seen : self._steps]
        bad = (~fresh_S.isfinite()).nonzero().flatten().tolist()
        self._seen = self._steps
        return len(fresh_S) - 1 - bad[0] if bad else None

    def mean_loss(self) -> float:
        """Mean since the last call; the only place that waits for the device."""
        mean = float(self._loss_S[: self._steps].mean())
        self._steps = self._seen = 0
        return mean

    def images_per_s(self) -> float:
        """Since the last call."""
        rate = self._logged_images / max(self._logged_s, 1e-9)
        self._logged_s, self._logged_images = 0.0, 0
        return rate

    def move_to(self, state: TrainState) -> None:
        """Adds what was counted since the last checkpoint to the state of the next one."""
        state.seconds += self.seconds
        state.images += self._images
        self.seconds, self._images = 0.0, 0
