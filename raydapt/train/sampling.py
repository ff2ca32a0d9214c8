"""Which images a step sees: a pure function of (seed, round, stream, step), so that resuming needs no sampler state.

Legend: M images of a stream, B batch.
"""

import hashlib

import torch
from torch import Tensor


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything that prints the same everywhere."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seeds what draws random numbers on the CPU and on this device.

    The same numbers as after `torch.manual_seed`, which also notes the call stack for every kind of device that is not
    there: three milliseconds, where a step on cached features takes as many.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Full batches in `n_images`; a smaller set is one batch. What is left over comes in another epoch's order."""
    return max(1, n_images // batch_size)


class StreamOrder:
    """The order of one stream in one round: a fresh permutation for every pass over it."""

    def __init__(self, n_images: int, batch_size: int, *, seed: int, round_: int, name: str) -> None:
        self._n = n_images
        self._batch_size = min(batch_size, n_images)
        self._steps = steps_per_epoch(n_images, batch_size)
        self._key = (seed, round_, name)
        self._pass = -1
        self._order_M = torch.empty(0, dtype=torch.int64)

    def positions(self, step: int, *, rank: int = 0, world: int = 1) -> Tensor:
        """int64 positions, within the stream, of one worker's part of the batch of a 0-based step.

        All workers get equally many positions; where the batch does not divide, the first ones are seen twice.
        """
        pass_, offset = divmod(step, self._steps)
        if pass_ != self._pass:
            generator = torch.Generator().manual_seed(seed_of(*self._key, pass_))
            self._order_M = torch.randperm(self._n, generator=generator)
            self._pass = pass_
        position_B = self._order_M[offset * self._batch_size : (offset + 1) * self._batch_size]
        short = -len(position_B) % world
        if short:
            position_B = torch.cat([position_B, position_B.repeat(short)[:short]])
        return position_B[rank::world]
