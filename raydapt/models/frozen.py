"""The frozen model of a run: the CLIP that the settings name, or the class embeddings that stand for one."""

from functools import lru_cache

import torch

from raydapt.data.class_features import read_class_features
from raydapt.models.clip import Clip, clip_identity, load_clip
from raydapt.models.given_embeddings import GivenEmbeddings
from raydapt.progress import said_if_slow
from raydapt.settings.groups import DataSettings, ModelSettings

_CLIP_SCALE = 100.0
"""Of OpenAI's CLIP and most that were trained as it was."""


def load_frozen(data: DataSettings, model: ModelSettings, *, device: str | torch.device = "cpu") -> Clip:
    """Loads what a run compares its images with, a named model once a process (see `shared_clip`).

    Args:
        data: With `class_features`, these are read, and no model is loaded.
        model: Names the model, or says by what cosines are multiplied.
        device: Where to put it.

    Raises:
        UserError: When there is no such model or file, or it cannot be used.
    """
    if data.class_features is None:
        return shared_clip(model.clip, device=device)
    names = data.class_names if isinstance(data.class_names, list) else None
    features = read_class_features(data.class_features, names)
    scale = (features.logit_scale or _CLIP_SCALE) if model.logit_scale == "auto" else model.logit_scale
    given: Clip = GivenEmbeddings(features, logit_scale=scale).to(device)
    return given


def shared_clip(name: str, *, device: str | torch.device = "cpu") -> Clip:
    """The CLIP of a name, loaded once a process: whoever takes it reads it and changes nothing.

    Raises:
        UserError: When there is no such model, or it cannot be fetched.
    """
    return _loaded(name, clip_identity(name), str(device))


@lru_cache(maxsize=2)
def _loaded(name: str, identity: str, device: str) -> Clip:
    """By identity too, so that weights that changed meanwhile are loaded anew."""
    with said_if_slow(f"loading the model {name} …"):
        return load_clip(name, device=device)
