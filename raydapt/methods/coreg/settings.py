"""The settings of Co-Reg."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from raydapt.settings.types import STRICT, Count, NonNegative, Positive, PositiveInt, Share


@dataclass(frozen=True, kw_only=True)
class CoregSettings:
    """Collaborative consistency regularization: two small students on partial labels; defaults as published."""

    __pydantic_config__ = STRICT

    annotation: Literal["prompts", "topk", "prob_ratio", "mean"] = "prompts"
    """Candidates: the best class of every template; or of the mean probability the best few, or all near the best."""
    templates: Literal["small", "imagenet", "set"] | list[str] = "small"
    """Wordings that vote: the published 27, the 80 of ImageNet, ``data.templates``, or a list with one ``{}`` each."""
    voters: list[str] = field(default_factory=list)
    """Finished runs whose adapted models vote in place of the templates (ours)."""
    topk: PositiveInt = 5
    """Classes per image with ``annotation: topk``."""
    prob_ratio: Share = 0.5
    """Share of the best probability that makes a candidate with ``annotation: prob_ratio``."""
    student: str = "preact_resnet18"
    """``mini``, ``preact_resnet18``, ``wide_resnetDEPTH_WIDTH`` (such as wide_resnet28_2) or ``timm/NAME``; or
    ``linear`` or ``mlp``, which take CLIP's features in place of images (ours)."""
    pretrained: bool = False
    """Start a timm student from its published weights."""
    gpu_per_student: bool = False
    """Put the second student on a GPU of its own; a worker then needs two."""
    image_size_px: PositiveInt = 32
    """Side of the images that the students see."""
    epoch_images: Count = 0
    """An epoch deals out at least so many images, those of a smaller set several times (ours): few images alone make
    too few steps."""
    warmup_epochs: PositiveInt = 50
    """Of ``train.epochs``, spent on the candidate sets as they are."""
    start_contrast: Count = 10
    """Epochs after the warm-up without prototypes and contrast."""
    weak_views: PositiveInt = 2
    """Weakly changed views of each image, which the students label."""
    strong_views: PositiveInt = 2
    """The second is the key of the contrast; with one view the weak view is."""
    crop_padding_px: Count = 4
    """Border around an image that random crops may reach into."""
    mirror: bool = True
    """Mirror half of the views; off for digits, letters and signs."""
    quarter_turns: bool = False
    """Also turn images by 90 degrees: for aerial views and others without an upright (ours)."""
    magnitude: Annotated[float, Ge(0), Le(10)] | Literal["random"] = "random"
    """Of the one random operation of a strong view; 0 turns it off, ``random`` draws it for every image as the
    public code does. Of features, a twentieth of it is missing, with ``random`` a quarter."""
    cutout_px: Count | Literal["random"] = "random"
    """Side of the square that is cut out of strong views; 0 leaves it out, ``random`` draws it up to half of the
    image's, as the public code does behind its random operation."""
    clean_threshold: Share = 0.5
    """Probability above which a partial label is believed."""
    co_pseudo_labels: bool = True
    """False: each student divides and labels for itself (ablation)."""
    sharpening: Positive = 0.5
    """Temperature T of the co-pseudo-labels p^(1/T); less is sharper."""
    unlabelled_weight: NonNegative = 1.0
    """0 leaves the unlabelled split out (ablation)."""
    unlabelled_ramp: Count = 16
    """Epochs after the warm-up until that weight is reached."""
    unlabelled_error: Literal["sum", "mean"] = "sum"
    """Squared error summed over the classes (paper) or averaged (code)."""
    distribution_alignment: bool = True
    """Divide with predictions whose mean over the images is uniform."""
    align_guesses: bool = False
    """Teach such predictions too (ours), against classes that die out."""
    mixup: NonNegative = 4.0
    """Parameter of the Beta distribution; 0 turns MixUp off (it is in the code, not in the paper)."""
    prototype_weight: NonNegative = 0.1
    """Factor of the prototypes' loss; 0 leaves it out (ablation)."""
    prototype_temperature: Positive = 0.3
    """Of the softmax over similarities to the prototypes."""
    prototype_momentum: Share = 0.999
    """Share of a prototype that stays when an image moves it."""
    contrast: Literal["noisy", "sup", "none"] = "noisy"
    """Contrast that distrusts the unlabelled split, plain supervised contrast, or none (ablations)."""
    contrast_weight: NonNegative = 0.1
    """Factor of the contrastive loss."""
    contrast_temperature: Positive = 0.07
    """Of the softmax over similarities to the keys."""
    momentum: Share = 0.999
    """Of the students' momentum copies, which make the keys."""
    queue: PositiveInt = 8192
    """Keys of earlier batches that the contrast compares with."""
