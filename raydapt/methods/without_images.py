"""A source of features in place of images: what a run can do with it, and what it cannot, in a sentence each."""

from dataclasses import replace

from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.errors import UserError
from raydapt.methods.spec import MethodSpec
from raydapt.models.clip import Clip
from raydapt.settings.config import Config

NO_IMAGES = ImageSpec(size_px=1)
"""Stands where an image tower would say how it takes images."""


def decide_prompt(config: Config) -> Config:
    """The same settings with ``model.prompt`` decided: a residual where class embeddings stand for the model."""
    if config.model.prompt != "auto":
        return config
    if config.data.class_features is None:
        return replace(config, model=replace(config.model, prompt="text"))
    return replace(config, model=replace(config.model, prompt="residual"))


def check_source_of(config: Config, source: Source, clip: Clip) -> None:
    """Refuses features that do not fit the model, and class embeddings without features.

    Raises:
        UserError: See above.
    """
    data = config.data
    if not source.width:
        if data.class_features is not None:
            raise UserError(
                f"Setting data.class_features={data.class_features!r} goes with features, and "
                f"data.source={data.source!r} holds images: leave it out and name a model in model.clip."
            )
    elif data.class_features is not None and clip.embed_dim != source.width:
        raise UserError(
            f"data.class_features={data.class_features!r} has vectors of width {clip.embed_dim}, and "
            f"data.source={data.source!r} of width {source.width}: give class embeddings of the model that encoded the "
            "images."
        )
    elif clip.embed_dim != source.width:
        raise UserError(
            f"data.source={data.source!r} holds features of width {source.width}, and model.clip={config.model.clip!r} "
            f"makes features of width {clip.embed_dim}: name the model that made them, or give data.class_features."
        )


def check_method_of(config: Config, spec: MethodSpec, *, text_tower: bool) -> None:
    """Refuses a method, or settings of it, that features are not enough for.

    Args:
        config: Resolved.
        spec: Of the method.
        text_tower: False where class embeddings stand for the model.

    Raises:
        UserError: With the setting and the way out.
    """
    if sentence := spec.unfit_for_features(config, text_tower=text_tower):
        raise UserError(f"{sentence.rstrip('.')} (data.source={config.data.source!r} holds features and no images).")
    if config.synthesis.held_out and not text_tower:
        raise UserError(
            f"Setting synthesis.held_out={config.synthesis.held_out} makes images, which data.class_features cannot "
            "encode: set it to 0, or name the model in model.clip."
        )
