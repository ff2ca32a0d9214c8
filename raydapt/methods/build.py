"""From settings to a method: the one place where a method's name means its class."""

from __future__ import annotations

import torch
from torch import Tensor

from raydapt.data.augment import Augmentation
from raydapt.data.classes import ClassSpace
from raydapt.errors import UserError
from raydapt.methods.air.part import AirPart
from raydapt.methods.air.settings import AirSettings
from raydapt.methods.contract import Method, SyntheticImages, TrainingImages
from raydapt.methods.coreg.method import CoReg
from raydapt.methods.cpl.method import Cpl
from raydapt.methods.ensemble.method import Ensemble
from raydapt.methods.fair.method import Fair
from raydapt.methods.fpl.method import Fpl
from raydapt.methods.grip.method import Grip
from raydapt.methods.latteclip.method import LatteClip
from raydapt.methods.wca.method import Wca
from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.models.clip import Clip
from raydapt.models.prompts import PromptedClip
from raydapt.settings.config import Config

LEARNING_METHODS = ("fpl", "grip", "cpl", "air", "fair", "coreg", "latteclip")


def build_method(
    config: Config,
    clip: Clip,
    classes: ClassSpace,
    images: TrainingImages | None = None,
    synthetic: SyntheticImages | None = None,
) -> Method:
    """Builds the method that `config.method` names, on the device of `clip`.

    Args:
        config: The settings, resolved.
        clip: The frozen model.
        classes: Names and templates; the first template is the zero-shot prompt.
        images: What it may learn from; None for a method that is only to predict.
        synthetic: Synthetic images for a method that is only to predict (AiR with fusion at test time).

    Raises:
        UserError: When the prompts do not fit the model or the class names.
    """
    zero_shot_CD = clip.class_embeddings(classes.names, classes.templates[:1])
    if config.method == "zero_shot":
        return ZeroShot(clip, zero_shot_CD)
    if config.method == "ensemble":
        return Ensemble(clip, classes.names, classes.templates)
    if config.method == "wca":
        return Wca(clip, classes, settings=config.fair)
    if config.method == "fair":
        return Fair(clip, classes, images, settings=config.fair, batch_size=config.train.batch_size)
    if config.method == "coreg":
        return _coreg(config, clip, len(classes.names), images)
    if config.method == "latteclip":
        return _latteclip(config, clip, classes, images)
    prompted = PromptedClip(clip, classes.names, classes.templates, config.model, seed=config.seed)
    batch_size, seed = config.train.batch_size, config.seed
    base = config.air.base if config.method == "air" else config.method
    air = None
    if config.method == "air" and has_a_part(config.air):
        air = _air_part(config, clip, zero_shot_CD, images, synthetic)
    if base == "fpl":
        shots = config.fpl.shots
        return Fpl(prompted, zero_shot_CD, images, shots=shots, batch_size=batch_size, seed=seed, air=air)
    if base == "grip":
        return Grip(prompted, zero_shot_CD, images, settings=config.grip, batch_size=batch_size, seed=seed, air=air)
    return Cpl(prompted, zero_shot_CD, images, settings=config.cpl, batch_size=batch_size, seed=seed, air=air)


def has_a_part(settings: AirSettings) -> bool:
    """Whether AiR differs from its base at all."""
    return settings.fusion_weight > 0 or settings.synthetic_weight > 0


def _air_part(
    config: Config,
    clip: Clip,
    zero_shot_CD: Tensor,
    images: TrainingImages | None,
    synthetic: SyntheticImages | None,
) -> AirPart | None:
    """What AiR adds; None for a method that is only to predict and does so as its base does."""
    if images is None and not config.air.fusion_at_test:
        return None
    made = synthetic if images is None else images.synthetic
    if made is None:
        raise ValueError("air was built without synthetic images")
    return AirPart(config.air, made, zero_shot_CD, clip.logit_scale)


def _coreg(config: Config, clip: Clip, n_classes: int, images: TrainingImages | None) -> CoReg:
    settings = config.coreg
    if settings.gpu_per_student and images is not None and torch.cuda.device_count() < 2:
        raise UserError(
            f"Setting coreg.gpu_per_student=true: a worker sees {torch.cuda.device_count()} GPUs and needs two: set "
            "train.gpus_per_worker=2 where nodes have them, or coreg.gpu_per_student=false."
        )
    augmentation = Augmentation(
        mean=clip.image_spec.mean,
        std=clip.image_spec.std,
        padding_px=settings.crop_padding_px,
        mirror=settings.mirror,
        quarter_turns=settings.quarter_turns,
        magnitude=settings.magnitude,
        cutout_px=settings.cutout_px,
    )
    return CoReg(
        settings,
        augmentation,
        images,
        n_classes=n_classes,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        seed=config.seed,
    )


def _latteclip(config: Config, clip: Clip, classes: ClassSpace, images: TrainingImages | None) -> LatteClip:
    return LatteClip(
        clip,
        classes,
        images,
        settings=config.latteclip,
        model=config.model,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        seed=config.seed,
    )
