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


class BlockOrder:
    """The order of a stream whose images lie in blocks that are read as a whole, as a worker sees it.

    In every pass the blocks come in a random order and are dealt to the workers in equal shares, one piece each. A
    piece is cut into windows, and the images of a window come in a random order. So a worker reads no more than its
    share, and a window at a time; how well images mix is decided by how many blocks a window has.
    """

    def __init__(
        self,
        block_M: Tensor,
        batch_size: int,
        *,
        window_images: int,
        seed: int,
        round_: int,
        name: str,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Draws nothing yet.

        Args:
            block_M: int64 block of each image of the stream.
            batch_size: Images per step over all workers.
            window_images: Most images of a window; at least a step's are.
            seed: With round and name what the order follows from.
            round_: See ``seed``.
            name: See ``seed``.
            rank: The worker.
            world: Workers.
        """
        self._block_M, self._key, self._rank, self._world = block_M, (seed, round_, name), rank, world
        self._share = -(-min(batch_size, len(block_M)) // world)
        self._steps = steps_per_epoch(len(block_M), batch_size)
        self._window_steps = max(1, window_images // self._share)
        self._cuts: dict[int, tuple[Tensor, ...]] = {}

    def window(self, step: int) -> tuple[tuple[int, int], Tensor]:
        """Name of the window that a 0-based step lies in, and the int64 positions within the stream that it has."""
        pass_, number, _ = self._locate(step)
        return (pass_, number), self._cuts[pass_][number]

    def within(self, step: int) -> Tensor:
        """int64 places of a step's images in its window; all workers have equally many."""
        pass_, number, offset = self._locate(step)
        start = (offset - number * self._window_steps) * self._share
        return torch.arange(start, start + self._share) % len(self._cuts[pass_][number])

    def next_window(self, step: int) -> int:
        """The first step behind the window of a step."""
        pass_, number, _ = self._locate(step)
        last = number == len(self._cuts[pass_]) - 1
        return pass_ * self._steps + (self._steps if last else (number + 1) * self._window_steps)

    def _locate(self, step: int) -> tuple[int, int, int]:
        """Pass, window within it, and step within it."""
        pass_, offset = divmod(step, self._steps)
        if pass_ not in self._cuts:  # two are kept: the next one is asked for before this one is over
            self._cuts = {known: cut for known, cut in self._cuts.items() if known == pass_ - 1}
            self._cuts[pass_] = self._cut(pass_)
        # Where a batch does not divide among the workers, a piece is a few images short of its last steps.
        return pass_, min(offset // self._window_steps, len(self._cuts[pass_]) - 1), offset

    def _cut(self, pass_: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed_of(*self._key, pass_))
        place_G = torch.randperm(int(self._block_M.max()) + 1, generator=generator)
        order_M = torch.argsort(place_G[self._block_M], stable=True)
        # Fewer images than workers: everyone sees all.
        piece_P = order_M.tensor_split(self._world)[self._rank] if len(order_M) >= self._world else order_M
        return tuple(
            window_W[torch.randperm(len(window_W), generator=generator)]
            for window_W in torch.split(piece_P, self._window_steps * self._share)
        )
