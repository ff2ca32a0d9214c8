"""The groups of settings that methods, stages and verbs share: frozen dataclasses, a meaning below each field."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from raydapt.settings.types import STRICT, Auto, Count, NodeLabel, NonNegative, Positive, PositiveInt, Share

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""What a frozen model multiplies in."""
DenoiserPrecision = Literal["auto", "fp8", "fp8-weights"]
"""What the UNet of a diffusion pipeline multiplies in."""
PixelEncoding = Literal["raw", "webp", "jpeg"]
"""How decoded images are stored."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What the images are, and which of them a method may learn from."""

    __pydantic_config__ = STRICT

    source: str = "digits"
    """Class folders, a flat folder, a zip archive of them, CSV or JSON lines that name images, Parquet, WebDataset
    tars, ``hf://…``, ``s3://…``, or a named set; or features: Parquet with a column ``feature``, clip-retrieval's
    folder, ``.npy``, ``.npz``."""
    class_features: str | None = None
    """Of features whose model is not there: Parquet with ``name``, ``feature`` and perhaps ``template``, or ``.npz``,
    ``.npy``; they then stand for ``model.clip``."""
    class_names: Auto | list[str] | str = "auto"
    """A list, or the path of a file (text: one name a line; YAML or JSON: a list); ``auto``: from the named set or the
    folders."""
    first_label: Auto | Count = "auto"
    """Number of the first class where labels are numbers and names are given; ``auto``: 0, where a label 0 is there."""
    templates: Auto | list[str] = "auto"
    """Prompt wordings with one ``{}`` each; the first is the prompt, all of them are the ensemble."""
    protocol: Literal["raydapt", "grip", "coop", "latteclip"] = "raydapt"
    """Class names and prompt wording of a named set as published: by GRIP and CPL, by CoOp, or by LatteCLIP, which also
    adapts to ``val``. Read where names and templates are ``auto``."""
    paradigm: Literal["ul", "ssl", "trzsl"] = "ul"
    """Nothing labelled, a few labelled images per class, or the seen classes labelled."""
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    """Splits that are adapted to."""
    test_splits: list[str] = field(default_factory=lambda: ["test"])
    """Splits that are evaluated on; where a source has none of them, the training images are."""
    shots: PositiveInt = 2
    """Labelled images per class in SSL."""
    split_seed: Count = 500
    """Seed of the seen/unseen division of the classes in TRZSL (the published ones are 500, 0 and 200)."""
    seen_share: Annotated[float, Gt(0), Le(1)] = 0.62
    """Share of the classes that is seen in TRZSL."""
    limit: PositiveInt | None = None
    """Use the first images of the source alone."""
    class_prior: str | dict[str, str | float] = "unknown"
    """How often classes occur: ``unknown``, ``uniform``, levels as ``{oak: common, birch: rare}`` (16 : 4 : 1, others
    ``normal``), or numbers for all classes; see docs/own-data.md."""
    reject: Auto | bool | Annotated[float, Gt(0), Lt(1)] = "auto"
    """Images of none of the names: ``auto`` warns of them, ``true`` keeps them out of what is learned from and answers
    "none of these", a number does so with that share of the images, ``false`` does not even warn."""
    other_labels: list[str] = field(default_factory=list)
    """Labels that stand for "none of these": no classes, and measured as such."""
    max_error_share: Share = 0.01
    """The stage fails when a larger share of its rows cannot be read."""
    max_image_pixels: PositiveInt = 100_000_000
    """Larger images are rows with an error; their header is read before they are decoded."""
    max_image_bytes: PositiveInt = 64 * 1024 * 1024
    """Larger files are rows with an error."""

    @property
    def rejects(self) -> bool:
        """Whether images of no named class are kept out of what is learned from."""
        return self.reject not in ("auto", False)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The CLIP model and what of it is learned."""

    __pydantic_config__ = STRICT

    clip: str = "mini"
    """``mini``, a folder in open_clip's or transformers' layout, the name of either on the hub (``ORG/NAME``, with
    ``@REVISION`` to pin it), or ``ARCHITECTURE/PRETRAINED`` of open_clip, where PRETRAINED may be a weights file."""
    second: str = "none"
    """Features of the same images by another encoder, for ``transduct``: ``none``; ``self``, a small network learned
    from the images; a vision model of timm, open_clip or transformers by name or folder; or a file of features
    (Parquet, ``.npy``, ``.npz``), matched by its column ``id``, or by order where it has none."""
    prompt: Auto | Literal["text", "visual", "both", "residual"] = "auto"
    """What is learned: vectors before the class name, tokens in the image tower, both (through one transformer), or the
    class embeddings themselves (task residuals); ``auto``: text, with ``data.class_features`` residual."""
    residual_scale: Positive = 0.5
    """alpha of the task residuals; published: 0.5, on Flowers102 1."""
    logit_scale: Positive | Auto = "auto"
    """Factor from cosine to logit with ``data.class_features``; ``auto``: as ``raydapt features`` noted it in
    the file, else CLIP's, 100. A model that is loaded has its own."""
    text_prompt_tokens: PositiveInt = 16
    """Length of the text prompt; the class name and it must fit into the text tower."""
    visual_prompt_tokens: PositiveInt = 16
    """Length of the visual prompt, after CLS."""
    classes_per_chunk: PositiveInt = 256
    """Class texts encoded at a time; with more classes the backward pass recomputes chunk by chunk."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How a Ray Data stage is spread over the cluster. Its last three settings alone change a result."""

    __pydantic_config__ = STRICT

    actors: PositiveInt | Auto = "auto"
    """Model actors; ``auto``: one per GPU, else one per two CPUs."""
    batch_size: PositiveInt = 256
    """Images that an encoder takes at a time."""
    cpus_per_actor: NonNegative = 1.0
    """Logical CPUs that each model actor reserves."""
    gpus_per_actor: NonNegative | Auto = "auto"
    """GPUs that each model actor reserves; ``auto``: one where there are some; 0.5 puts two on one."""
    rows_per_part: PositiveInt = 512
    """Rows that are read, committed and resumed together."""
    compile: bool = False
    """Let torch compile the encoder for batches of ``batch_size``: faster on GPUs, after a minute's wait. Its features
    differ by rounding alone."""
    precision: Precision | Auto = "auto"
    """What encoders multiply in; ``auto``: fp32, in which every device makes the same features. ``tf32`` (GPUs alone),
    ``bf16`` and ``fp16`` (autocast) are several times faster on GPUs; their features are stored apart from others."""
    decode: Literal["cpu", "device"] | Auto = "cpu"
    """What decodes images for encoders: ``cpu``, Pillow; ``device``, torchvision, JPEGs in batches where they are
    encoded (nvJPEG on a GPU), whose features are stored apart from others; ``auto``: ``device`` where the machine of
    the command has a GPU and fewer than 8 CPUs for each, else ``cpu``."""
    stored_pixels: PixelEncoding = "raw"
    """How decoded images lie in the store, for methods that read pixels: ``webp`` is lossless, in about half the bytes;
    ``jpeg`` (quality 95) takes a sixth and changes them a little. Each is stored apart."""

    @property
    def decodes_on_device(self) -> bool:
        """Whether images are decoded where they are encoded.

        Raises:
            ValueError: While it is not decided (`raydapt.stages.work.decide_decode`).
        """
        if self.decode == "auto":
            raise ValueError("features.decode=auto is resolved before anything is made")
        return self.decode == "device"

    @property
    def arithmetic(self) -> Precision:
        """The precision without ``auto``."""
        return "fp32" if self.precision == "auto" else self.precision


@dataclass(frozen=True, kw_only=True)
class SecondSettings:
    """How ``model.second: self`` learns: a small network, self-supervised on the training images (SimCLR)."""

    __pydantic_config__ = STRICT

    size_px: PositiveInt = 32
    """Side of the images that the network sees."""
    steps: PositiveInt = 300
    """Optimiser steps."""
    batch_size: Annotated[int, Ge(2)] = 128
    """Images per step, each seen in two views; fewer where there are fewer."""
    learning_rate: Positive = 2e-3
    """Of AdamW, reached after 50 steps; a cosine then lowers it."""
    temperature: Positive = 0.2
    """Of the contrastive loss."""
    least_area: Annotated[float, Gt(0), Le(1)] = 0.3
    """A view shows between this share and all of an image."""
    mirror: bool = True
    """Mirror half of the views; off where left and right mean something, as in writing."""
    seed: Count = 0
    """Of everything random in it; the run's own seed does not change it."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training loop shared by every method."""

    __pydantic_config__ = STRICT

    workers: Count | Annotated[list[PositiveInt], Len(2, 2)] = 0
    """Ray Train workers; 0 trains in this process, and so does 1 where ``ray.address`` and RAY_ADDRESS name no
    cluster. ``[1, 4]``: as many of them as there is room for, at any time."""
    gpus_per_worker: NonNegative | Auto = "auto"
    """GPUs that each worker reserves; ``auto``: one where there are some."""
    cpus_per_worker: Positive = 1.0
    """Logical CPUs that each worker reserves."""
    epochs: PositiveInt = 50
    """Epochs of each round."""
    batch_size: PositiveInt = 64
    """Images per optimiser step over all workers."""
    max_steps_per_round: PositiveInt | None = None
    """Ends a round early; the learning-rate schedule then spans these steps."""
    optimizer: Literal["sgd", "adamw", "adamw_clip"] = "sgd"
    """``adamw_clip``: with the betas 0.9 and 0.98 and the 1e-6 of CLIP's training, and no decay of vectors."""
    learning_rate: Positive | Literal["auto", "published"] = "auto"
    """The highest one, reached after the warm-up; a cosine then lowers it step by step. ``auto``: from the logit scale,
    the width and the number of steps; ``published``: as the method's authors have it."""
    unit_gradient: bool | Auto = "auto"
    """Scale the gradient to length 1 in every step, so that SGD's step is as long as the learning rate says; ``auto``:
    where ``learning_rate: auto`` counts on it."""
    momentum: Share = 0.9
    """Of SGD; AdamW keeps its own betas."""
    weight_decay: NonNegative = 0.05
    """Of the optimiser."""
    warmup_epochs: NonNegative = 2.0
    """Epochs of each round in which the learning rate rises from 0."""
    final_rate_share: Share = 0.0
    """What the cosine leaves of the learning rate at the end."""
    schedule_epochs: PositiveInt | None = None
    """Epochs that the cosine spans, where a run is to end before it; None: the run's own."""
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
    """Images at a time where nothing is learned; changes no result."""
    cache_gb: NonNegative = 2.0
    """For methods that read pixels: a set of decoded images of no more than so many GB (10^9 bytes) is kept in each
    worker's memory. A larger one is read from the store while it is learned from, this much at a time."""

    @property
    def most_workers(self) -> int:
        """Ray Train workers, at most."""
        return self.workers if isinstance(self.workers, int) else max(self.workers)

    @property
    def least_workers(self) -> int:
        """Ray Train workers, at least."""
        return self.workers if isinstance(self.workers, int) else min(self.workers)

    @property
    def rate(self) -> float:
        """The learning rate as a number.

        Raises:
            ValueError: While it is not decided (`raydapt.methods.rates`).
        """
        if isinstance(self.learning_rate, str):
            raise ValueError(f"train.learning_rate={self.learning_rate} is resolved before anything is learned")
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """What a learned run answers with."""

    __pydantic_config__ = STRICT

    with_frozen: Auto | bool = "auto"
    """Answer with the mean of the frozen and the adapted model's probabilities: about a point less on balanced sets, a
    fraction of the loss where adaptation harms. ``auto``: where the guard is on and development sets say so, which is
    for Co-Reg's students of features."""


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """Synthetic images: which pipeline makes how many of each class, and how (AiR; every default a reconstruction)."""

    __pydantic_config__ = STRICT

    pipeline: str = "mini"
    """``mini``, a folder in diffusers' layout, or a name of the model hub (``ORG/NAME@REVISION``): Stable Diffusion,
    its XL, Turbo and 3, Flux, PixArt, Sana, LCM; see docs/pipelines.md."""
    lora: str | None = None
    """LoRA weights to be used as they are, in diffusers' or kohya's layout: a folder, a file, or ``ORG/NAME`` of the
    hub; None: the settings of ``lora`` decide."""
    samples_per_class: PositiveInt = 100
    """M. More of them later are added to those that are there."""
    held_out: Count = 0
    """Further images of each class that nothing learns from: the label-free scores of any method go by them."""
    template: Auto | str = "auto"
    """Prompt with one ``{}``; ``auto``: the first of the data's templates."""
    negative_prompt: str = ""
    """What images are to be unlike; empty: nothing."""
    scheduler: Literal["pipeline", "ddim", "dpm++", "euler", "lcm"] = "dpm++"
    """The sampler: the one that the pipeline comes with, or another; ``lcm`` suits pipelines distilled to few steps.
    Stable Diffusion 3, Flux, Sana and LCM pipelines keep their own."""
    steps: PositiveInt = 20
    """Denoising steps of an image."""
    guidance: NonNegative = 7.5
    """Scale of classifier-free guidance; up to 1 there is none."""
    size_px: PositiveInt | Auto = "auto"
    """Side of the images; ``auto``: the pipeline's own."""
    seed: Count = 0
    """Of the images; the run's own seed does not change them."""
    batch_size: PositiveInt = 20
    """Images of one class that are made at once, committed and resumed together."""
    compile: bool = False
    """Let torch compile the UNet, or the transformer in its place: faster on GPUs, after a minute's wait. Its images
    differ by rounding alone, and are not told apart from others."""
    precision: DenoiserPrecision = "auto"
    """What the UNet, or the transformer in its place, multiplies in; ``auto``: half precision on a GPU, fp32 on a CPU.
    ``fp8-weights`` holds the weights of linear layers in FP8, on any device; ``fp8`` multiplies in it too, on GPUs of
    compute capability 8.9 or more. Both need ``raydapt[fp8]``, and their images are stored apart from others."""
    actors: PositiveInt | Auto = "auto"
    """Actors that hold the pipeline; ``auto``: one per GPU, else one per two CPUs."""
    cpus_per_actor: NonNegative = 1.0
    """Logical CPUs that each of them reserves, and its threads on a CPU. On some processors another number of threads
    gives other bytes for some images; it is not part of the fingerprint."""
    gpus_per_actor: NonNegative | Auto = "auto"
    """GPUs that each of them reserves; ``auto``: one where there are some."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adaptation of the pipeline to the target images (AiR; every default a reconstruction)."""

    __pydantic_config__ = STRICT

    enabled: bool = True
    """Off: the pipeline makes images as it is."""
    rank: PositiveInt = 4
    """Of the low-rank matrices."""
    text_encoder: bool = False
    """Adapt the text encoder's attention as well as the UNet's."""
    images_per_class: PositiveInt = 16
    """The most confident pseudo-labelled images of each class are learned from."""
    learning_rate: Positive = 1e-4
    """Of AdamW."""
    steps: PositiveInt = 1000
    """Optimiser steps."""
    batch_size: PositiveInt = 16
    """Images per step."""


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The Ray cluster that a run uses."""

    __pydantic_config__ = STRICT

    address: str = "auto"
    """``local`` starts a cluster here, ``auto`` does so unless RAY_ADDRESS names one, else an address to join. With
    ``auto`` and no cluster, a stage of less than 30 s of estimated work is done in this process, without Ray."""
    cpus: PositiveInt | Auto = "auto"
    """Logical CPUs of a local cluster; ``auto``: at least 4."""
    progress: bool | Auto = "auto"
    """Rewrite a line of progress in place; ``auto``: on a terminal or in a notebook, outside CI; off: write none."""
    decode_nodes: NodeLabel | None = None
    """Label, such as ``raydapt=cpu``, of the nodes that read and decode; none: any node."""
    model_nodes: NodeLabel | None = None
    """Label, such as ``raydapt=gpu``, of the nodes that hold models and train; none: any node."""
    wait_for_nodes_s: NonNegative = 900.0
    """How long to wait for nodes that a cluster lacks and may start; 0 says at once what is missing."""
