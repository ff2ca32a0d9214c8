"""FAIR's settings, decided: descriptions read and checked, sizes resolved."""

from dataclasses import replace

from raydapt.artefacts.crops import CropSpec
from raydapt.artefacts.spec import PlanFacts
from raydapt.data.classes import ClassSpace
from raydapt.data.descriptions import check_descriptions, packaged_descriptions, read_descriptions
from raydapt.data.named_sets import named_set
from raydapt.errors import UserError
from raydapt.methods.fair.settings import FairSettings
from raydapt.settings.config import Config
from raydapt.settings.groups import DataSettings

_TIMES_LARGER = 2


def resolve_fair(config: Config, facts: PlanFacts) -> FairSettings:
    """The settings without `auto`, with the descriptions themselves instead of their file.

    Raises:
        UserError: For sizes that contradict each other, or descriptions that do not fit the classes.
    """
    classes, image_spec = facts.classes, facts.image_spec
    fair = config.of(FairSettings).decided(has_images=not facts.source.width, size_px=image_spec.size_px)
    if not facts.text_tower and fair.descriptions == "auto":
        fair = replace(fair, anchor_text="names")
    if fair.n_crops and fair.top_k != "all" and fair.top_k > fair.n_crops:
        raise UserError(
            f"Setting fair.top_k={fair.top_k} is more than fair.crops={fair.n_crops}: lower it, or take more crops."
        )
    if fair.crop_least_side > fair.crop_most_side:
        raise UserError(
            f"Setting fair.crop_least_side={fair.crop_least_side} is more than "
            f"fair.crop_most_side={fair.crop_most_side}: exchange them."
        )
    size = _TIMES_LARGER * image_spec.size_px if fair.image_px == "auto" else fair.image_px
    if size < image_spec.size_px:
        raise UserError(
            f"Setting fair.image_px={size} is less than the {image_spec.size_px} px that the model takes: raise it."
        )
    if fair.anchor_text != "names":
        try:
            described = descriptions_of(fair, config.data, classes)
        except UserError:  # `auto` does without those that come with a set, and not without those that are given
            if fair.anchor_text != "auto" or fair.descriptions != "auto":
                raise
        else:
            return replace(fair, image_px=size, anchor_text="descriptions", descriptions=described)
    return replace(fair, image_px=size, anchor_text="names", descriptions="auto")


def descriptions_of(fair: FairSettings, data: DataSettings, classes: ClassSpace) -> dict[str, list[str]]:
    """The descriptions of the classes, from wherever the settings say.

    Raises:
        UserError: If there are none, or they do not fit the classes.
    """
    if not isinstance(fair.descriptions, str):
        return check_descriptions(fair.descriptions, classes.names, "the job file")
    if fair.descriptions != "auto":
        return check_descriptions(read_descriptions(fair.descriptions), classes.names, repr(fair.descriptions))
    names = [data.class_names] if isinstance(data.class_names, str) and data.class_names != "auto" else []
    known = next((found for name in [*names, data.source] if (found := named_set(name))), None)
    if known is None:
        raise UserError(
            f"Setting fair.descriptions=auto: none come with raydapt for data.source={data.source!r}; give a file of "
            "them, or set fair.anchor_text=names."
        )
    return check_descriptions(packaged_descriptions(known.name), classes.names, f"the package, for {known.name!r},")


def crop_spec(settings: FairSettings) -> CropSpec:
    """The crops that the settings ask for."""
    return CropSpec(crops=settings.n_crops, least_side=settings.crop_least_side, most_side=settings.crop_most_side)
