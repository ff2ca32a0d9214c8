"""LoRA adapters (peft) for the towers of a CLIP, on the layers that a tower has.

LoRA (Hu et al., arXiv 2106.09685) adapts the projections of attention. Towers keep them in different forms, and some
have none that an adapter reaches: of these the other linear layers and the convolutions are adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

_PACKED = "attn.in_proj_weight"
_PROJECTIONS = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))
"""How the layers that make queries, keys and values are called, in timm and in transformers."""


def add_adapters(tower: nn.Module, run: Callable[[], Any], *, rank: int, seed: int) -> None:
    """Puts adapters of a rank, which change nothing at first, into an image tower or a model of both towers.

    Args:
        tower: What the adapters are put into.
        run: Calls the tower once: an adapter works in layers that are called, and the weights of some are read past
            them (EVA's ``qkv``).
        rank: Of the adapters; ``lora_alpha`` is the same, so that their factor is 1.
        seed: Of the adapters' start.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    modules = dict(tower.named_modules())
    image = {name for name in modules if name.startswith("visual.")}
    layers: list[str] = []
    packed = False
    called: set[str] | None = None
    for part in (image, modules.keys() - image):
        if any(isinstance(modules[name], nn.MultiheadAttention) for name in part):
            packed = True
        else:
            called = _called_layers(modules, run) if called is None else called
            layers += _chosen_layers(sorted(called & part))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, target_parameters=[_PACKED] if packed else None)
    if not layers and not packed:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, tower)


def _called_layers(modules: dict[str, nn.Module], run: Callable[[], Any]) -> set[str]:
    """The names of the linear layers and convolutions that are called, of those that an adapter fits."""
    called: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in modules.items()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return called


def _chosen_layers(called: Collection[str]) -> list[str]:
    """The projections of attention, else all layers."""
    for names in _PROJECTIONS:
        chosen = [name for name in called if name.rpartition(".")[2] in names and "att" in name.lower()]
        if chosen:
            return chosen
    return list(called)
