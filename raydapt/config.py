"""Every setting of raydapt: frozen dataclasses, a YAML file and ``key=value`` overrides.

``load_config("jobs/cpl.yaml", ["data.source=eurosat", "seed=0"])`` is the only way in. Unknown keys are
refused with the nearest name. A value ``"auto"`` is resolved once, by the pipeline, and the resolved configuration is
what stands in the run folder; an ``auto`` that stays there is a resource, chosen from the cluster at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le

from raydapt.config_caption import CaptionSettings, DescribeSettings
from raydapt.config_coreg import CoregSettings
from raydapt.config_latteclip import LatteclipSettings
from raydapt.config_tune import TuneSettings
from raydapt.setting_trees import (
    apply_override,
    as_tree,
    merge_trees,
    read_yaml,
    setting_names,
    settings_from_tree,
)
from raydapt.setting_types import STRICT, Auto, Count, NodeLabel, NonNegative, Positive, PositiveInt, Share

__all__ = ["apply_override", "as_tree", "merge_trees", "read_yaml", "setting_names", "settings_from_tree"]

METHODS = ("zero_shot", "ensemble", "wca", "fpl", "grip", "cpl", "air", "fair", "coreg", "latteclip")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What the images are, and which of them a method may learn from."""

    __pydantic_config__ = STRICT

    source: str = "digits"
    """Class folders, a flat folder, Parquet, WebDataset tars, ``hf://…``, ``s3://…``, or a named set."""
    class_names: Auto | list[str] | str = "auto"
    """A list, or the path of a text file (one name a line); ``auto``: from the named set or the folders."""
    first_label: Auto | Count = "auto"
    """Number of the first class where labels are numbers and names are given; ``auto``: 0, where a label 0 is there."""
    templates: Auto | list[str] = "auto"
    """Prompt wordings with one ``{}`` each; the first is the prompt, all of them are the ensemble."""
    paradigm: Literal["ul", "ssl", "trzsl"] = "ul"
    """Nothing labelled, a few labelled images per class, or the seen classes labelled."""
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    test_splits: list[str] = field(default_factory=lambda: ["test"])
    shots: PositiveInt = 2
    """Labelled images per class in SSL."""
    split_seed: Count = 500
    """Seed of the seen/unseen division of the classes in TRZSL (the published ones are 500, 0 and 200)."""
    seen_share: Annotated[float, Gt(0), Le(1)] = 0.62
    limit: PositiveInt | None = None
    """Use the first images of the source alone."""
    max_error_share: Share = 0.01
    """The stage fails when a larger share of its rows cannot be read."""
    max_image_pixels: PositiveInt = 100_000_000
    max_image_bytes: PositiveInt = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The CLIP model and what of it is learned."""

    __pydantic_config__ = STRICT

    clip: str = "mini"
    """``mini``, a folder in open_clip's layout, ``hf-hub:…``, or ``ARCHITECTURE/PRETRAINED`` of open_clip."""
    prompt: Literal["text", "visual", "both"] = "text"
    text_prompt_tokens: PositiveInt = 16
    visual_prompt_tokens: PositiveInt = 16
    classes_per_chunk: PositiveInt = 256
    """Class texts encoded at a time; with more classes the backward pass recomputes chunk by chunk."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How a Ray Data stage is spread over the cluster. Nothing here changes a result."""

    __pydantic_config__ = STRICT

    actors: PositiveInt | Auto = "auto"
    """Model actors; ``auto``: one per GPU, else one per two CPUs."""
    batch_size: PositiveInt = 256
    cpus_per_actor: NonNegative = 1.0
    gpus_per_actor: NonNegative | Auto = "auto"
    rows_per_part: PositiveInt = 512
    """Rows that are read, committed and resumed together."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training loop shared by every method."""

    __pydantic_config__ = STRICT

    workers: Count = 0
    """Ray Train workers; 0 trains in this process."""
    gpus_per_worker: NonNegative | Auto = "auto"
    cpus_per_worker: Positive = 1.0
    epochs: PositiveInt = 50
    """Epochs of each round."""
    batch_size: PositiveInt = 64
    """Images per optimiser step over all workers."""
    max_steps_per_round: PositiveInt | None = None
    """Ends a round early; the learning-rate schedule then spans these steps."""
    optimizer: Literal["sgd", "adamw", "adamw_clip"] = "sgd"
    """``adamw_clip``: with the betas 0.9 and 0.98 and the 1e-6 of CLIP's training, and no decay of vectors."""
    learning_rate: Positive = 0.02
    momentum: Share = 0.9
    """Of SGD; AdamW keeps its own betas."""
    weight_decay: NonNegative = 0.05
    warmup_epochs: NonNegative = 2.0
    final_rate_share: Share = 0.0
    """What the cosine leaves of the learning rate at the end."""
    clip_grad_norm: NonNegative = 0.8
    """0 turns clipping off."""
    gradient_accumulation: PositiveInt = 1
    """Parts that a worker's share of a batch is cut into."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bf16 on devices that have it natively, fp32 elsewhere."""
    checkpoint_every_s: NonNegative = 30.0
    """Least time between two checkpoints; 0 writes one after every epoch."""
    max_failures: Count = 3
    """Times that lost workers are replaced."""
    predict_batch_size: PositiveInt = 1024


@dataclass(frozen=True, kw_only=True)
class FplSettings:
    """Few pseudo-labels: the most confident images of each class, once."""

    __pydantic_config__ = STRICT

    shots: PositiveInt = 16


@dataclass(frozen=True, kw_only=True)
class GripSettings:
    """Growing pseudo-labels, iteratively."""

    __pydantic_config__ = STRICT

    rounds: PositiveInt = 10
    board: Literal["clean", "published"] = "clean"
    """Leader board that stops at the first success, or the published one, which depends on file order."""
    labelled_weight: NonNegative | Auto = "auto"


@dataclass(frozen=True, kw_only=True)
class CplSettings:
    """Candidate pseudo-labels."""

    __pydantic_config__ = STRICT

    rounds: PositiveInt = 10
    alpha: Annotated[float, Gt(0), Le(1)] | Auto = "auto"
    """Quantile of the top probabilities that bounds an image's candidate set (intra-image rule)."""
    beta: Share | Auto = "auto"
    """Quantile of a class's column below which an image is no candidate (inter-image rule)."""
    unlabelled_weight: NonNegative = 1.0


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
    image_scale: Positive | Literal["model", "matched"] = "model"
    """Factor of image-image similarities: CLIP's own, a number, or as sure on average as the text classifier is."""
    cleaning_top: Count = 0
    """Drop synthetic images whose class is not among so many best ones of zero-shot (5 in the spec); 0 keeps all."""
    fusion_at_test: bool = False
    """Let the synthetic images judge at prediction time as well."""


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """Synthetic images: which pipeline makes how many of each class, and how (AiR; every default a reconstruction)."""

    __pydantic_config__ = STRICT

    pipeline: str = "mini"
    """``mini``, a folder in diffusers' Stable Diffusion layout, or a name of the model hub."""
    lora: str | None = None
    """Folder of LoRA weights to be used as they are; None: the settings of ``lora`` decide."""
    samples_per_class: PositiveInt = 100
    """M. More of them later are added to those that are there."""
    held_out: Count = 0
    """Further images of each class that nothing learns from: the label-free scores of any method go by them."""
    template: Auto | str = "auto"
    """Prompt with one ``{}``; ``auto``: the first of the data's templates."""
    negative_prompt: str = ""
    scheduler: Literal["pipeline", "ddim", "dpm++", "euler", "lcm"] = "dpm++"
    """The sampler: the one that the pipeline comes with, or another; ``lcm`` suits pipelines distilled to few steps."""
    steps: PositiveInt = 20
    guidance: NonNegative = 7.5
    """Scale of classifier-free guidance; up to 1 there is none."""
    size_px: PositiveInt | Auto = "auto"
    """Side of the images; ``auto``: the pipeline's own."""
    seed: Count = 0
    """Of the images; the run's own seed does not change them."""
    batch_size: PositiveInt = 20
    """Images of one class that are made at once, committed and resumed together."""
    actors: PositiveInt | Auto = "auto"
    cpus_per_actor: NonNegative = 1.0
    gpus_per_actor: NonNegative | Auto = "auto"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adaptation of the pipeline to the target images (AiR; every default a reconstruction)."""

    __pydantic_config__ = STRICT

    enabled: bool = True
    """Off: the pipeline makes images as it is."""
    rank: PositiveInt = 4
    text_encoder: bool = False
    """Adapt the text encoder's attention as well as the UNet's."""
    images_per_class: PositiveInt = 16
    """The most confident pseudo-labelled images of each class are learned from."""
    learning_rate: Positive = 1e-4
    steps: PositiveInt = 1000
    batch_size: PositiveInt = 16


@dataclass(frozen=True, kw_only=True)
class FairSettings:
    """FAIR: class description anchors and crops. Every default is a reconstruction, its alternatives beside it."""

    __pydantic_config__ = STRICT

    descriptions: dict[str, list[str]] | Auto | str = "auto"
    """Class to sentences, or a YAML or JSON file of that; ``auto``: those that come with the named set."""
    anchor_text: Literal["descriptions", "names"] = "descriptions"
    """What anchors start from; ``names``: the class names in all templates."""
    anchor_mean: Literal["plain", "weighted"] = "plain"
    """How descriptions are averaged; ``weighted``: by their cosine with the class's prompt ensemble."""
    anchors_per: Literal["class", "description"] = "class"
    learn_anchors: bool = True
    layer_norms: bool = True
    """Learn the LayerNorms of the image tower; without, images and crops are encoded once and kept."""
    crops: Count = 8
    """N squares per image that pseudo-labels come from; 0 is plain self-training."""
    top_k: PositiveInt | Literal["all"] = "all"
    """Crops that count, those most like the whole image; ``all`` as in WCA."""
    temperature: Positive = 1.0
    """Of the softmax over their similarities; 1 weighs them nearly alike."""
    crop_least_side: Annotated[float, Gt(0), Le(1)] = 0.5
    crop_most_side: Annotated[float, Gt(0), Le(1)] = 0.9
    """The side of a crop is uniform between these shares of the image's."""
    image_px: PositiveInt | Auto = "auto"
    """Side of the stored images; ``auto``: twice the model's, so that crops keep detail."""
    weighting: Literal["agreement", "margin", "none"] = "agreement"
    """Of the pseudo-labels, against confused classes; both forms were only inferred."""
    fairness: NonNegative = 1.0
    """Weight of the term that wants all classes equally often."""
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
    score_at_test: bool = False
    """Predict by the crops' score as well; one view is the default."""


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The Ray cluster that a run uses."""

    __pydantic_config__ = STRICT

    address: str = "auto"
    """``local`` starts a cluster here, ``auto`` does so unless RAY_ADDRESS names one, else an address to join."""
    cpus: PositiveInt | Auto = "auto"
    """Logical CPUs of a local cluster; ``auto``: at least 4."""
    progress: bool | Auto = "auto"
    decode_nodes: NodeLabel | None = None
    """Label, such as ``raydapt=cpu``, of the nodes that read and decode; none: any node."""
    model_nodes: NodeLabel | None = None
    """Label, such as ``raydapt=gpu``, of the nodes that hold models and train; none: any node."""
    wait_for_nodes_s: NonNegative = 900.0
    """How long to wait for nodes that a cluster lacks and may start; 0 says at once what is missing."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. The run's name is a fingerprint of everything that matters unless it is given."""

    __pydantic_config__ = STRICT

    method: Literal["zero_shot", "ensemble", "wca", "fpl", "grip", "cpl", "air", "fair", "coreg", "latteclip"] = "cpl"
    seed: Count = 0
    name: str = "auto"
    runs: str = "runs"
    store: str = "store"
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    features: StageSettings = field(default_factory=StageSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    fpl: FplSettings = field(default_factory=FplSettings)
    grip: GripSettings = field(default_factory=GripSettings)
    cpl: CplSettings = field(default_factory=CplSettings)
    air: AirSettings = field(default_factory=AirSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    fair: FairSettings = field(default_factory=FairSettings)
    coreg: CoregSettings = field(default_factory=CoregSettings)
    latteclip: LatteclipSettings = field(default_factory=LatteclipSettings)
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    tune: TuneSettings = field(default_factory=TuneSettings)
    space: dict[str, Any] = field(default_factory=dict)
    """What a sweep varies: dotted setting to ``{uniform: [low, high]}``, ``loguniform``, ``integer`` or ``choice``."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies ``key=value`` overrides and checks every setting.

    Args:
        path: A job file; None takes the defaults.
        overrides: Dotted keys, such as ``train.epochs=5``; values are YAML.

    Raises:
        UserError: For a missing or broken file, an unknown key or a value of the wrong kind.
    """
    tree: dict[str, Any] = {} if path is None else read_yaml(path)
    for item in overrides:
        apply_override(tree, item)
    return config_from_tree(tree)


def config_from_tree(tree: dict[str, Any]) -> Config:
    """Builds the configuration from nested dictionaries, or raises a `UserError` of one sentence."""
    return settings_from_tree(Config, tree)
