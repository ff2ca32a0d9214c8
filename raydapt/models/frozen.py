"""The frozen model of a run: the CLIP that the settings name, or the class embeddings that stand for one."""

import torch

from raydapt.data.class_features import read_class_features
from raydapt.models.clip import Clip, load_clip
from raydapt.models.given_embeddings import GivenEmbeddings
from raydapt.settings.groups import DataSettings, ModelSettings

_CLIP_SCALE = 100.0
"""Of OpenAI's CLIP and most that were trained as it was."""


def load_frozen(data: DataSettings, model: ModelSettings, *, device: str | torch.device = "cpu") -> Clip:
    """Loads what a run compares its images with.

    Args:
        data: With `class_features`, these are read, and no model is loaded.
        model: Names the model, or says by what cosines are multiplied.
        device: Where to put it.

    Raises:
        UserError: When there is no such model or file, or it cannot be used.
    """
    if data.class_features is None:
        return load_clip(model.clip, device=device)
    names = data.class_names if isinstance(data.class_names, list) else None
    features = read_class_features(data.class_features, names)
    scale = (features.logit_scale or _CLIP_SCALE) if model.logit_scale == "auto" else model.logit_scale
    given: Clip = GivenEmbeddings(features, logit_scale=scale).to(device)
    return given
