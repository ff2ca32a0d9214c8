"""An even sample of many images."""

import torch
from torch import Tensor


def even_sample(row_N: Tensor, most: int) -> Tensor:
    """`most` of the rows, evenly spread in their order, the first and the last among them; all where there are no more.

    In float64: the places among more than 2^24 rows are no float32 numbers.
    """
    if len(row_N) <= most:
        return row_N
    return row_N[torch.linspace(0, len(row_N) - 1, most, dtype=torch.float64, device=row_N.device).round().long()]
