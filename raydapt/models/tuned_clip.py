"""A CLIP of which some weights are learned, beside the frozen one that it came from.

Legend: B batch, T texts, L tokens, D width of the shared space, S image side in px.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from open_clip.timm_model import TimmModel
from torch import nn

from raydapt.errors import UserError
from raydapt.models.clip import Clip, OnClip

Tune = Literal["full", "ln", "lora"]
_MOST_LOG_SCALE = math.log(100)


class TunedClip(OnClip):
    """Both towers with learned weights of their own; whatever stays frozen is shared with the given model.

    Args:
        clip: The frozen model; never changed.
        tune: ``full`` learns all weights and the logit scale, ``ln`` the LayerNorms, ``lora`` adapters (peft) on the
            projections of attention.
        text: Whether the text tower is learned as well as the image tower.
        rank: Of the adapters.
        seed: Of the adapters' start.

    Raises:
        UserError: When the model has nothing of the kind.
    """

    def __init__(self, clip: Clip, *, tune: Tune, text: bool, rank: int, seed: int) -> None:
        chosen = {} if tune == "lora" else _chosen(clip.model, tune, text=text)
        own = _copy_sharing_the_rest(clip, chosen)
        super().__init__(own)
        if tune == "lora":
            learned = _add_adapters(own.model, text=text, rank=rank, seed=seed)
        else:
            learned = [own.model.get_parameter(name) for name in chosen]
        if not learned:
            raise UserError(
                f"Setting latteclip.tune={tune!r}: model.clip={clip.name!r} has nothing of the kind to learn; "
                "choose another one."
            )
        self.learned = nn.ParameterList([parameter.requires_grad_() for parameter in learned])
        self.text_learned, self._tune = text, tune
        start = torch.tensor(math.log(clip.logit_scale), device=clip.device)
        self.log_scale = nn.Parameter(start, requires_grad=tune == "full")

    def plain(self) -> Clip:
        """The model as it is learned, with adapters worked into its weights."""
        if self._tune != "lora":
            return self.clip
        from peft.tuners.tuners_utils import BaseTunerLayer

        own = copy.deepcopy(self.clip)
        for parent in list(own.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BaseTunerLayer):
                    child.merge()
                    setattr(parent, name, child.get_base_layer())
        return own

    def clamp_scale(self) -> None:
        """Keeps the logit scale within 1 and 100, as CLIP's own training does."""
        with torch.no_grad():
            self.log_scale.clamp_(0.0, _MOST_LOG_SCALE)


def _chosen(model: nn.Module, tune: Tune, *, text: bool) -> dict[str, nn.Parameter]:
    """The weights to learn, by name; the logit scale and bias are none of a tower."""
    norms = {place for place, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if (text or name.startswith("visual."))
        and name not in ("logit_scale", "logit_bias")
        and (tune == "full" or name.rpartition(".")[0] in norms)
    }


def _copy_sharing_the_rest(clip: Clip, chosen: dict[str, nn.Parameter]) -> Clip:
    """A copy of the modules in which only the chosen weights are copied."""
    memo: dict[int, Any] = {id(clip.tokenizer): clip.tokenizer}
    memo |= {id(parameter): parameter for name, parameter in clip.model.named_parameters() if name not in chosen}
    return copy.deepcopy(clip, memo)


def _add_adapters(model: nn.Module, *, text: bool, rank: int, seed: int) -> list[nn.Parameter]:
    """Puts adapters on the projections to queries, keys and values: packed ones (open_clip), or a layer (timm)."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    tower = model if text else getattr(model, "visual")  # noqa: B009 - torch types attributes of modules as tensors
    packed = any(isinstance(module, nn.MultiheadAttention) for module in tower.modules())
    layers = any(isinstance(module, TimmModel) for module in tower.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["attn.qkv"] if layers else [],
        target_parameters=["attn.in_proj_weight"] if packed else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, tower)
    device = next(model.parameters()).device
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    for adapter in adapters:
        adapter.data = adapter.data.to(device, torch.float32)
    return adapters
