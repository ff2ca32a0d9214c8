"""FP8 in the part of a diffusion pipeline that denoises: its linear layers as torchao stores and multiplies them.

A weight is rounded to e4m3 (4 bits of exponent, 3 of mantissa), with one scale for each row: half the memory of half
precision. Convolutions, norms, text encoders and the VAE stay as they are.
"""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from raydapt.errors import UserError
from raydapt.settings.groups import DenoiserPrecision

_FP8_CAPABILITY = (8, 9)
"""Of NVIDIA's first cards with matrix units for FP8 (Ada); Hopper has 9.0."""
_GRAIN = 16
"""What both sides of a matrix must be a multiple of for those units."""


def require_torchao(precision: DenoiserPrecision) -> Any:
    """The module ``torchao.quantization`` where a precision needs it, else None.

    Raises:
        UserError: When it is needed and cannot be imported.
    """
    if precision == "auto":
        return None
    try:
        return import_module("torchao.quantization")
    except ImportError as error:
        raise UserError(
            f"Setting synthesis.precision={precision} needs torchao ({error}): pip install 'raydapt[fp8]', or set it "
            "to auto."
        ) from error


def require_fp8_units(precision: DenoiserPrecision, device: torch.device) -> None:
    """Refuses to multiply in FP8 on a device that cannot.

    Raises:
        UserError: See above.
    """
    if precision != "fp8":
        return
    found = "a CPU"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _FP8_CAPABILITY:
            return
        found = f"{torch.cuda.get_device_name(device)} (compute capability {'.'.join(map(str, capability))})"
    raise UserError(
        f"Setting synthesis.precision=fp8 needs GPUs of compute capability 8.9 or more, such as L4, L40S and H100, and "
        f"an actor has {found}: set it to fp8-weights, which every device can do, or to auto."
    )


def quantize_linear_layers(model: nn.Module, precision: DenoiserPrecision) -> None:
    """Puts FP8 in place of the weights of linear layers whose sides are multiples of 16; `auto` changes nothing.

    ``fp8`` rounds what a layer is given as well, row by row as it comes, and multiplies in FP8 (torchao's dynamic
    quantisation); it wants bfloat16 weights. ``fp8-weights`` multiplies in the precision that the weights had.

    Args:
        model: Changed in place; LoRA weights are in it already.
        precision: See ``synthesis.precision``.

    Raises:
        UserError: When torchao cannot be imported.
    """
    torchao = require_torchao(precision)
    if torchao is None:
        return
    # Its changes to the compiler's settings would hold for all that this process compiles.
    if precision == "fp8":
        how = torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow(), set_inductor_config=False)
    else:
        how = torchao.Float8WeightOnlyConfig(set_inductor_config=False)
    torchao.quantize_(model, how, filter_fn=lambda module, name: is_quantizable(module))


def is_quantizable(module: nn.Module) -> bool:
    """Whether a module is a linear layer that FP8 units can multiply by."""
    return isinstance(module, nn.Linear) and not (module.in_features % _GRAIN or module.out_features % _GRAIN)
