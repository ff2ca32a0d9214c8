"""The settings of AiR."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raydapt.settings.types import STRICT, Count, NonNegative, Positive, PositiveInt, Share


@dataclass(frozen=True, kw_only=True)
class AirSettings:
    """AiR: synthetic images judge the unlabelled ones and are learned from. Every default is a reconstruction."""

    __pydantic_config__ = STRICT

    base: Literal["cpl", "grip", "fpl"] = "cpl"
    """The method that gets the images' help; its own settings hold."""
    fusion_weight: NonNegative = 1.0
    """Lambda in p* = norm(p + lambda p^); 0 leaves the pseudo-labels to the text classifier."""
    fusion_decay: Share = 0.5
    """Lambda is multiplied by this after each round: the text classifier has then learned from what images said."""
    synthetic_weight: NonNegative = 1.0
    """Beta of the synthetic images' cross-entropy; 0 leaves them out of learning."""
    synthetic_only: bool = False
    """Learn from synthetic images alone, without pseudo-labels and labelled images."""
    prototypes: Literal["nearest", "all", "mean"] = "nearest"
    """What stands for a class: its images closest to their mean, all of them, or the mean itself."""
    nearest: PositiveInt = 16
    """K, synthetic images per class that are compared with."""
    centred: bool = True
    """Compare synthetic and real images after taking from each kind its mean; off: as they are."""
    image_scale: Positive | Literal["model", "matched"] = "matched"
    """Factor of image-image similarities: as sure on average as the text classifier is, CLIP's own, or a number."""
    trzsl_classes: Literal["unseen", "all"] = "unseen"
    """TRZSL: the classes whose synthetic images are learned from, and whose images teach the LoRA; those with labels
    have better teachers (ours)."""
    cleaning_top: Count = 0
    """Drop synthetic images whose class is not among so many best ones of zero-shot (5 in the spec); 0 keeps all."""
    fusion_at_test: bool = False
    """Let the synthetic images judge at prediction time as well."""


def air_groups(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """AiR's own group and that of its base; a base that is none is refused when the group is checked."""
    own = tree.get("air")
    base = own.get("base", AirSettings.base) if isinstance(own, Mapping) else AirSettings.base
    return ("air", base) if base in ("cpl", "grip", "fpl") else ("air",)
