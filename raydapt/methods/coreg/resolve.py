"""The settings of Co-Reg, resolved: the wordings that vote, and lengths that fit each other."""

from collections.abc import Sequence
from dataclasses import replace

from raydapt.data.class_features import MEAN
from raydapt.data.classes import check_templates
from raydapt.data.named_sets import annotation_templates, named_set
from raydapt.errors import UserError
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.models.clip import imagenet_templates
from raydapt.settings.config import Config


def resolve_coreg(config: Config, *, text_tower: bool = True) -> CoregSettings:
    """Templates as a list; where class embeddings stand for the model, these are all that the file has.

    Raises:
        UserError: For a wording without a place for the class name, or a warm-up that is the whole training.
    """
    coreg, train = config.of(CoregSettings), config.train
    if coreg.warmup_epochs >= train.epochs:
        raise UserError(
            f"Setting coreg.warmup_epochs={coreg.warmup_epochs} leaves nothing of train.epochs={train.epochs} to "
            "co-training: lower the one or raise the other."
        )
    if not text_tower:
        return replace(coreg, templates=_given_templates(coreg, config.data.templates))
    if coreg.templates == "imagenet":
        templates = imagenet_templates()
    elif coreg.templates == "set":
        templates = tuple(config.data.templates)
    elif coreg.templates == "small":
        known = named_set(config.data.source)
        templates = known.annotation_templates if known else annotation_templates()
    else:
        templates = tuple(coreg.templates)
    check_templates(templates, setting="coreg.templates")
    return replace(coreg, templates=list(templates))


def _given_templates(coreg: CoregSettings, known: Sequence[str]) -> list[str]:
    """The wordings that vote among class embeddings."""
    templates = [template for template in known if template != MEAN] or [MEAN]
    if not isinstance(coreg.templates, str):
        templates = list(coreg.templates)
    if len(templates) < 2 and coreg.annotation == "prompts" and not coreg.voters:
        raise UserError(
            "Setting coreg.annotation=prompts lets wordings vote, and data.class_features has a single one for all "
            "classes: set coreg.annotation=topk, or give embeddings of more wordings."
        )
    return templates
