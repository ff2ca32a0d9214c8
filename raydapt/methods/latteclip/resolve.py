"""LatteCLIP's settings, checked against each other."""

from raydapt.errors import UserError
from raydapt.methods.latteclip.settings import LatteclipSettings
from raydapt.settings.config import Config
from raydapt.stages.caption import GROUP_CAPTIONS, IMAGE_CAPTIONS

_WORDS = {
    "full": "both towers of CLIP",
    "ln": "LayerNorms of both towers",
    "lora": "adapters in both towers",
    "text_prompt": "text prompt",
    "visual_prompt": "visual prompt",
}


def check_latteclip(config: Config) -> None:
    """Refuses what cannot work.

    Raises:
        UserError: For another paradigm than UL, no branch, or no text at all.
    """
    settings = config.latteclip
    if config.data.paradigm != "ul":
        raise UserError(
            f"Setting data.paradigm={config.data.paradigm!r}: latteclip learns without any label; set it to ul."
        )
    if not (settings.use_finetune_pseudolabel or settings.use_zeroshot_pseudolabel):
        raise UserError(
            "Settings latteclip.use_finetune_pseudolabel=false and use_zeroshot_pseudolabel=false leave nothing to "
            "learn: keep one of them."
        )
    if not (settings.use_template_caption or settings.use_image_caption or settings.use_batch_caption):
        raise UserError(
            "Settings latteclip.use_template_caption, use_image_caption and use_batch_caption are all false, which "
            "leaves no text: keep one of them."
        )


def caption_kinds(config: Config) -> tuple[str, ...]:
    """The kinds of captions that a run reads."""
    if config.method != "latteclip":
        return ()
    wanted = {IMAGE_CAPTIONS: config.latteclip.use_image_caption, GROUP_CAPTIONS: config.latteclip.use_batch_caption}
    return tuple(kind for kind, used in wanted.items() if used)


def latteclip_learns(settings: LatteclipSettings) -> str:
    """What is learned, in words."""
    words = _WORDS[settings.tune]
    return words.replace("both towers", "the image tower") if settings.towers == "image" else words
