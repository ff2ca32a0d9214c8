"""The LoRA of the diffusion pipeline: what it depends on, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raydapt.settings.groups import DataSettings, LoraSettings
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

if TYPE_CHECKING:
    from raydapt.models.diffusion import Sampling  # diffusers takes seconds to import

KIND = "lora"


def lora_recipe(
    lora: LoraSettings,
    data: DataSettings,
    class_names: Sequence[str],
    template: str,
    sampling: Sampling,
    *,
    features: Recipe,
    identity: str,
) -> Recipe:
    """What the LoRA depends on: the images with their pseudo-labels, the pipeline, and how it is trained.

    Args:
        lora: How it is trained.
        data: Splits of the images that teach it, and the template of their zero-shot classes.
        class_names: All classes.
        template: The caption of an image, with one ``{}``.
        sampling: Of the images that are made with it; the side and the seed matter.
        features: The recipe of the features that the pseudo-labels come from.
        identity: Identity of the pipeline's weights.
    """
    settings: dict[str, Any] = {
        "lora": lora,
        "class_names": list(class_names),
        "caption": template,
        "zero_shot_template": data.templates[0],
        "splits": [data.train_splits, data.test_splits],
        "size_px": sampling.size_px,
        "seed": sampling.seed,
    }
    if (
        data.class_prior != "unknown"
    ):  # it decides how many images of a class teach; without one names stay as they were
        settings["class_prior"] = data.class_prior
    if data.rejects:  # it decides which images teach
        settings["reject"] = data.reject
    return Recipe(kind=KIND, settings=settings, inputs=(features.fingerprint,), weights=identity)


def load_lora(artefact: Artefact) -> bytes:
    """The LoRA file of a finished artefact."""
    content: bytes = artefact.read(["content"])["content"][0].as_py()
    return content
