"""Models as torch compiles them: for one shape of their inputs, and with one sentence where it cannot."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raydapt.errors import UserError


def compiled(function: Callable[..., Any], *, setting: str) -> Callable[..., Any]:
    """What computes as a function does, by rounding apart; the first call compiles, and so does every other shape.

    Args:
        function: Of tensors.
        setting: What asks for it, for messages.

    Raises:
        UserError: From its calls, when torch cannot compile it on this machine.
    """
    fast = torch.compile(function, dynamic=False)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fast(*args, **kwargs)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # by now it is there; by itself it takes a second

            if not isinstance(error, TorchDynamoException):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"Setting {setting}=true: torch cannot compile the model on this machine ({reason}): set it to "
                "false, or install what is missing, such as a C++ compiler."
            ) from error

    return call


def in_batches_of(size: int, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of images, applied to batches of `size` alone; the last one is filled up with black images.

    Every batch is a copy, whole ones too: tensors from outside `torch.inference_mode` would be compiled for once more.
    """

    def call(pixel_N3SS: Tensor) -> Tensor:
        results = []
        for pixel_B3SS in torch.split(pixel_N3SS, size):
            filled = pixel_B3SS.new_zeros(size, *pixel_B3SS.shape[1:])
            filled[: len(pixel_B3SS)] = pixel_B3SS
            results.append(function(filled)[: len(pixel_B3SS)])
        return torch.cat(results)

    return call
