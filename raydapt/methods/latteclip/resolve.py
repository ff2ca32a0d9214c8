"""LatteCLIP's settings, checked against each other."""

from dataclasses import replace

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS
from raydapt.data.named_sets import named_set
from raydapt.errors import UserError
from raydapt.methods.latteclip.published import LENGTHS
from raydapt.methods.latteclip.section import learned
from raydapt.methods.latteclip.settings import LatteclipSettings
from raydapt.settings.config import Config


def check_latteclip(config: Config) -> None:
    """Refuses what cannot work.

    Raises:
        UserError: For no branch, or no text at all.
    """
    settings = config.of(LatteclipSettings)
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


def with_published_warmup(config: Config) -> Config:
    """With ``data.protocol: latteclip`` the warm-up of the authors' script for the set, if it has one."""
    known = named_set(config.data.source)
    if config.data.protocol != "latteclip" or known is None or known.name not in LENGTHS:
        return config
    return replace(config, train=replace(config.train, warmup_epochs=LENGTHS[known.name].warmup_epochs))


def caption_kinds(config: Config) -> tuple[str, ...]:
    """The kinds of captions that a run reads."""
    settings = config.of(LatteclipSettings)
    wanted = {IMAGE_CAPTIONS: settings.use_image_caption, GROUP_CAPTIONS: settings.use_batch_caption}
    return tuple(kind for kind, used in wanted.items() if used)


def latteclip_learns(settings: LatteclipSettings) -> str:
    """What is learned, in words."""
    return learned(settings.tune, settings.towers)
