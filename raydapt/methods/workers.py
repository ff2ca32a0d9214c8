"""What a method exchanges between the workers of one training; on a single worker nothing happens.

Legend: B batch of one worker, R workers.
"""

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
