"""The optimiser, its learning rate over the steps, and the length of its gradient."""

import math
from collections.abc import Iterable

import torch

from raydapt.methods.contract import Method
from raydapt.settings.groups import TrainSettings


def optimizer_of(method: Method, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of the settings over what the method learns; its rate is set at every step."""
    parameters = [p for p in method.parameters() if p.requires_grad]
    if settings.optimizer == "adamw_clip":
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98), eps=1e-6)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


def scale_to_unit_length(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Divides the gradient of all parameters together by its length; where it is 0 it stays."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    length = torch.nn.utils.get_total_norm(gradients)
    for gradient in gradients:
        gradient.div_(length.clamp_min(torch.finfo(length.dtype).tiny).to(gradient.device))


def cosine_with_warmup(step: int, *, total: int, warmup: int, final: float = 0.0) -> float:
    """The share of the base learning rate at a 0-based step: linear from 1/warmup, then a cosine to `final`.

    The published schedule steps once an epoch and so spends its first epoch at 0; this one steps with every batch.
    """
    if step < warmup:
        return (step + 1) / warmup
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
