"""Stages of Ray Data as Python functions, which ``import raydapt`` offers: each makes an artefact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from raydapt.verbs.call import config_of


def caption(
    source: str | Path,
    *,
    model: str = "mini",
    prompt: str = "auto",
    groups: bool = False,
    class_names: Sequence[str] | str | None = None,
    store: str | Path = "store",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, pd.DataFrame]:
    """Describes every image with a vision-language model.

    Args:
        source: The images, as for `run`.
        model: ``mini``, a folder in transformers' layout, or a name of the model hub.
        prompt: Asked of every image; a ``{}`` is its zero-shot class.
        groups: Also describe groups of four images of the same zero-shot class.
        class_names: The classes; they matter only for groups and for a prompt with ``{}``.
        store: Where captions are kept.
        settings: Any other settings by their dotted keys.

    Returns:
        ``image_captions``, and with `groups` ``group_captions``: a table each.

    Raises:
        UserError: For a model or a source that cannot be read.
    """
    given = {"caption.model": model, "caption.image_prompt": prompt, "data.class_names": class_names, "store": store}
    config = config_of(settings, source, given)
    from raydapt.verbs import caption as captioning

    return {kind: result.artefact.read().to_pandas() for kind, result in captioning.captions(config, groups).items()}


def describe(
    source: str | Path,
    *,
    model: str = "mini",
    class_names: Sequence[str] | str | None = None,
    store: str | Path = "store",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, list[str]]:
    """Lets a language model write what the classes look like.

    Args:
        source: The images, as for `run`; they are not looked at, but may hold the class names.
        model: ``mini``, a folder in transformers' layout, or a name of the model hub.
        class_names: The classes; None: from the named set or the folders.
        store: Where answers are kept.
        settings: Any other settings by their dotted keys.

    Returns:
        The descriptions of every class; as a YAML file they serve as ``fair.descriptions``.

    Raises:
        UserError: For classes of which no answer can be used, or a model that cannot be read.
    """
    config = config_of(settings, source, {"describe.model": model, "data.class_names": class_names, "store": store})
    from raydapt.verbs import describe as describing

    return describing.descriptions(config)[0]


def synthesize(
    source: str | Path,
    *,
    pipeline: str = "mini",
    samples_per_class: int | None = None,
    class_names: Sequence[str] | str | None = None,
    store: str | Path = "store",
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Makes synthetic images of every class with a diffusion pipeline.

    Args:
        source: The images, as for `run`; a LoRA of the pipeline is tuned on them.
        pipeline: ``mini``, a folder in diffusers' Stable Diffusion layout, or a name of the model hub.
        samples_per_class: Images of each class; None: 100.
        class_names: The classes; None: from the named set or the folders.
        store: Where the images are kept.
        settings: Any other settings by their dotted keys.

    Returns:
        The folder of the images.

    Raises:
        UserError: For a pipeline or a source that cannot be read.
    """
    given = {"synthesis.pipeline": pipeline, "synthesis.samples_per_class": samples_per_class}
    config = config_of(settings, source, {**given, "data.class_names": class_names, "store": store})
    from raydapt.verbs import synthesize as synthesizing

    return synthesizing.synthesize(config)


def features(
    source: str | Path,
    *,
    clip: str = "mini",
    class_names: Sequence[str] | str | None = None,
    store: str | Path = "store",
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Computes the CLIP features of images.

    Args:
        source: The images, as for `run`.
        clip: The model, as for `run`.
        class_names: The classes; None: from the named set or the folders.
        store: Where the features are kept.
        settings: Any other settings by their dotted keys.

    Returns:
        The folder of the features.

    Raises:
        UserError: For a model or a source that cannot be read.
    """
    config = config_of(settings, source, {"model.clip": clip, "data.class_names": class_names, "store": store})
    from raydapt.run import pipeline

    return pipeline.features(config)[0]
