"""The settings of FAIR."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from raydapt.settings.types import STRICT, Auto, Count, NonNegative, Positive, PositiveInt

_CROPS = 8
LEAST_PX = 224
"""Side of the images of the smallest tower that FAIR was published with."""


@dataclass(frozen=True, kw_only=True)
class FairSettings:
    """FAIR: class description anchors and crops. Every default is a reconstruction, its alternatives beside it."""

    __pydantic_config__ = STRICT

    descriptions: dict[str, list[str]] | Auto | str = "auto"
    """Class to sentences, or a YAML or JSON file of that; ``auto``: those that come with the named set."""
    anchor_text: Literal["descriptions", "names", "auto"] = "descriptions"
    """What anchors start from; ``names``: the class names in all templates, also taken where ``data.class_features``
    stands for the model; ``auto``: descriptions where some are given or come with the set, else names."""
    anchor_mean: Literal["plain", "weighted", "softmax"] = "plain"
    """How descriptions are averaged; ``weighted``: by their cosine with the class's prompt ensemble; ``softmax``: by
    the softmax of exp(2) times that cosine (WCA's)."""
    anchors_per: Literal["class", "description"] = "class"
    """One anchor for a class, or one for each of its descriptions."""
    learn_anchors: bool = True
    """Learn the anchors; off: they stay where they started."""
    layer_norms: bool | Auto = "auto"
    """Learn the LayerNorms of the image tower; without, images and crops are encoded once and kept. ``auto``: of towers
    that read 224 px or more, as published; strong views of smaller images teach them badly."""
    crops: Count | Auto | Literal["small_towers"] = "auto"
    """N squares per image that pseudo-labels come from; 0 is plain self-training. ``auto``: 8, of features 0;
    ``small_towers``: 8 where the tower reads less than 224 px, and encodes them in seconds, else 0."""
    labels_from: Literal["crops", "whole"] = "crops"
    """What pseudo-labels are made from; ``whole`` is plain self-training, whose images may still be answered from crops
    (``score_at_test``): so both can be compared at the same cost of a test."""
    top_k: PositiveInt | Literal["all"] = "all"
    """Crops that count, those most like the whole image; ``all`` as in WCA."""
    temperature: Positive = 1.0
    """Of the softmax over their similarities; 1 weighs them nearly alike."""
    crop_least_side: Annotated[float, Gt(0), Le(1)] = 0.5
    """Least side of a crop, as a share of the image's."""
    crop_most_side: Annotated[float, Gt(0), Le(1)] = 0.9
    """The side of a crop is uniform between these shares of the image's."""
    image_px: PositiveInt | Auto = "auto"
    """Side of the stored images; ``auto``: twice the model's, so that crops keep detail."""
    weighting: Literal["agreement", "margin", "none"] = "agreement"
    """Of the pseudo-labels, against confused classes; both forms were only inferred."""
    fairness: NonNegative = 1.0
    """Weight of the term that wants all classes equally often."""
    fairness_memory: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Share of earlier batches in the mean prediction of that term; 0: of one batch alone, which cannot hold all
    classes where these are many."""
    alignment: NonNegative = 0.0
    """Weight of DPA's alignment of anchors with image prototypes (0.01 to 1 there)."""
    logit_scale: Positive | Literal["model"] = 100.0
    """Factor from cosine to logit in score and loss; ``model``: the model's own."""
    strong_area: Annotated[float, Gt(0), Le(1)] = 0.3
    """The strong view shows at least this share of an image."""
    rand_augment: bool = True
    """Whether strong views go through RandAugment; without, they are parts of the image alone."""
    flip: bool = True
    """Whether strong views are mirrored half of the time."""
    cached_view: Literal["composite", "crop", "whole"] = "composite"
    """What is learned from where ``layer_norms`` is off: all crops that count together, a random crop in place of the
    strong view, or the image."""
    score_at_test: bool | Auto = "auto"
    """Predict by the crops' score, not by the whole image alone; ``auto``: where anchors alone learn, from crops."""

    def decided(self, *, has_images: bool = True, size_px: int = LEAST_PX) -> "FairSettings":
        """The same without ``auto`` in what is learned and looked at.

        Args:
            has_images: False for a source of features.
            size_px: Side of the images that the model reads.
        """
        learns_norms = has_images and size_px >= LEAST_PX if self.layer_norms == "auto" else self.layer_norms
        are_cut = has_images and (self.crops == "auto" or size_px < LEAST_PX)
        crops = (_CROPS if are_cut else 0) if isinstance(self.crops, str) else self.crops
        from_crops = self.labels_from == "crops" and self.cached_view != "whole" and crops > 0
        scored = from_crops and not learns_norms if self.score_at_test == "auto" else self.score_at_test
        return replace(self, layer_norms=learns_norms, crops=crops, score_at_test=scored)

    @property
    def n_crops(self) -> int:
        """Crops of an image."""
        return _CROPS if isinstance(self.crops, str) else self.crops

    @property
    def learns_norms(self) -> bool:
        """Whether the image tower changes."""
        return self.layer_norms is not False
