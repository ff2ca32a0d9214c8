"""What a method exchanges between the workers of one training; on a single worker nothing happens.

Legend: B batch of one worker, R workers.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def n_workers() -> int:
    """Workers that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def gather_rows(value_B: Tensor) -> Tensor:
    """The rows of all workers, in the order in which a single worker would have seen them.

    The loop deals a batch out like cards (row i goes to worker i mod R), so row j of worker r is row j R + r.
    """
    world = n_workers()
    if world == 1:
        return value_B
    parts = [torch.empty_like(value_B, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, value_B.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


@torch.no_grad()
def share_running_statistics(model: nn.Module) -> None:
    """Sets the running statistics of batch norms to their mean over the workers, each of which saw other images."""
    world = n_workers()
    if world == 1:
        return
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer)
            buffer.div_(world)


class _GatherRows(torch.autograd.Function):
    """All workers' rows forward; backward, the sum of what all workers want of this worker's rows."""

    @staticmethod
    def forward(ctx: Any, value_B: Tensor) -> Tensor:
        return gather_rows(value_B)

    @staticmethod
    def backward(ctx: Any, gradient_B: Tensor) -> Tensor:
        gradient_B = gradient_B.contiguous().clone()
        dist.all_reduce(gradient_B)
        return gradient_B[dist.get_rank() :: n_workers()]


def gather_rows_with_gradients(value_B: Tensor) -> Tensor:
    """As `gather_rows`, for a loss of all rows that every worker computes.

    Every worker's gradient of that loss is the whole one times the number of workers, over the parameters' shares;
    the mean that DistributedDataParallel takes makes it the gradient that one worker alone would have had.
    """
    if n_workers() == 1:
        return value_B
    gathered: Tensor = _GatherRows.apply(value_B)  # type: ignore[no-untyped-call]
    return gathered


@torch.no_grad()
def sum_over_workers(value: Tensor) -> Tensor:
    """The sum of the workers' tensors, on all of them."""
    if n_workers() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value
