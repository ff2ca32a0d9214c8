"""What a training counts between two log lines and two checkpoints."""

import torch
from torch import Tensor

from raydapt.train.checkpoint import TrainState


class Tally:
    """Loss, time and images since the last log line and since the last checkpoint."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._seen = 0
        self.seconds = self._logged_s = 0.0
        self._images = self._logged_images = 0

    def add(self, loss: Tensor, seconds: float, images: int) -> None:
        """Counts a step."""
        self._losses.append(loss)
        self.seconds += seconds
        self._logged_s += seconds
        self._images += images
        self._logged_images += images

    def first_not_finite(self) -> int | None:
        """How many steps ago the first loss since the last log line was that is NaN or infinite."""
        fresh = self._losses[self._seen :]
        bad = (~torch.stack(fresh).isfinite()).nonzero().flatten().tolist() if fresh else []
        first = len(fresh) - 1 - bad[0] if bad else None
        self._seen = len(self._losses)
        return first

    def mean_loss(self) -> float:
        """Mean since the last call; the only place that waits for the device."""
        mean = float(torch.stack(self._losses).mean())
        self._losses, self._seen = [], 0
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
