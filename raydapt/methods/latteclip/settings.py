"""The settings of LatteCLIP."""

from dataclasses import dataclass
from typing import Literal

from raydapt.settings.types import STRICT, PositiveInt, Share


@dataclass(frozen=True, kw_only=True)
class LatteclipSettings:
    """LatteCLIP: captions and class prompts move class prototypes, and these teach CLIP; defaults as published."""

    __pydantic_config__ = STRICT

    tune: Literal["full", "ln", "lora", "text_prompt", "visual_prompt", "residual"] = "full"
    """What is learned: everything and the logit scale (the paper), LayerNorms, LoRA on attention, a prompt, or a
    residual of the class embeddings (as with ``model.prompt: residual``; ours)."""
    towers: Literal["both", "image"] = "both"
    """Where ``full``, ``ln`` and ``lora`` learn; with ``image`` every text is encoded once (ours)."""
    lora_rank: PositiveInt = 4
    """Of the adapters with ``tune: lora``."""
    alpha: Share = 0.01
    """Share of a step's text in a prototype; 0 leaves the prototypes where they started."""
    use_finetune_pseudolabel: bool = True
    """The branch whose labels the current model gives."""
    use_zeroshot_pseudolabel: bool = True
    """The branch whose labels the frozen model gave."""
    use_image_caption: bool = True
    """Descriptions of single images."""
    use_batch_caption: bool = True
    """Descriptions of groups of four images of one zero-shot class."""
    use_template_caption: bool = True
    """The class prompt as a text."""
    augmentation: bool = True
    """Learn from random parts with jittered colours; off: from the images as they are."""
    legacy_broadcast: bool = False
    """The mixture as the published code has it, whose template weights scale feature axes; for comparison alone."""
