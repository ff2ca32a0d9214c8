"""A CLIP of which some weights are learned, beside the frozen one that it came from.

Legend: B batch, T texts, L tokens, D width of the shared space, S image side in px.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import nn

from raydapt.errors import UserError
from raydapt.models.adapters import add_adapters
from raydapt.models.clip import Clip, OnClip
from raydapt.models.effect import SAMPLE_TEXT, moves, sample_pixels

Tune = Literal["full", "ln", "lora"]
_MOST_LOG_SCALE = math.log(100)


class TunedClip(OnClip):
    """Both towers with learned weights of their own; whatever stays frozen is shared with the given model.

    Args:
        clip: The frozen model; never changed.
        tune: ``full`` learns all weights and the logit scale, ``ln`` the LayerNorms, ``lora`` adapters (see
            `raydapt.models.adapters`).
        text: Whether the text tower is learned as well as the image tower.
        rank: Of the adapters.
        seed: Of the adapters' start.

    Raises:
        UserError: When a tower that is to learn has nothing of the kind, or does not read it.
    """

    def __init__(self, clip: Clip, *, tune: Tune, text: bool, rank: int, seed: int) -> None:
        chosen = {} if tune == "lora" else _chosen(clip.model, tune, text=text)
        own = _copy_sharing_the_rest(clip, chosen)
        super().__init__(own)
        if tune == "lora":
            learned = _add_adapters(own, text=text, rank=rank, seed=seed)
        else:
            learned = [own.model.get_parameter(name) for name in chosen]
        self.learned = nn.ParameterList([parameter.requires_grad_() for parameter in learned])
        self._require_moves(clip.name, tune, text=text)
        self.text_learned, self._tune = text, tune
        start = torch.tensor(math.log(clip.logit_scale), device=clip.device)
        self.log_scale = nn.Parameter(start, requires_grad=tune == "full")

    def _require_moves(self, name: str, tune: Tune, *, text: bool) -> None:
        """Refuses what would be learned without effect: towers differ in what they have, and in what reads it."""
        if tune == "full":
            return
        tower = self.clip.text_tower
        outputs = {"image": lambda: self.clip.encode_image(sample_pixels(self.clip))}
        if text:
            outputs["text"] = lambda: tower.encode_tokens(tower.tokenize([SAMPLE_TEXT]))
        for which, output in outputs.items():
            if not moves(output, self.learned):
                raise UserError(
                    f"Setting latteclip.tune={tune!r}: model.clip={name!r} has nothing of the kind that its {which} "
                    f"features depend on: choose latteclip.tune={'lora' if tune == 'ln' else 'full'} or another model."
                )

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


def _add_adapters(clip: Clip, *, text: bool, rank: int, seed: int) -> list[nn.Parameter]:
    """Puts adapters into the image tower, or into both."""
    model = clip.model

    def run() -> None:
        clip.encode_image(sample_pixels(clip))
        if text:
            clip.encode_text([SAMPLE_TEXT])

    add_adapters(model if text else model.visual, run, rank=rank, seed=seed)
    adapters: list[nn.Parameter] = [p for name, p in model.named_parameters() if "lora_" in name]
    for adapter in adapters:
        adapter.data = adapter.data.to(clip.device, torch.float32)
    return adapters
