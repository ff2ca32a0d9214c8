"""Where a worker of a training stands."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """Where this worker stands among the others, and on which device."""

    device: torch.device
    rank: int = 0
    world: int = 1
