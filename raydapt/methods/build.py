"""From settings to a method: the one place where a method's name means its class."""

from __future__ import annotations

from raydapt.config import Config
from raydapt.data.classes import ClassSpace
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.cpl import Cpl
from raydapt.methods.ensemble import Ensemble
from raydapt.methods.fpl import Fpl
from raydapt.methods.grip import Grip
from raydapt.methods.zero_shot import ZeroShot
from raydapt.models.clip import Clip
from raydapt.models.prompts import PromptedClip


def build_method(config: Config, clip: Clip, classes: ClassSpace, images: TrainingImages | None = None) -> Method:
    """Builds the method that `config.method` names, on the device of `clip`.

    Args:
        config: The settings, resolved.
        clip: The frozen model.
        classes: Names and templates; the first template is the zero-shot prompt.
        images: What it may learn from; None for a method that is only to predict.

    Raises:
        UserError: When the prompts do not fit the model or the class names.
    """
    zero_shot_CD = clip.class_embeddings(classes.names, classes.templates[:1])
    if config.method == "zero_shot":
        return ZeroShot(clip, zero_shot_CD)
    if config.method == "ensemble":
        return Ensemble(clip, classes.names, classes.templates)
    prompted = PromptedClip(clip, classes.names, classes.templates, config.model, seed=config.seed)
    batch_size, seed = config.train.batch_size, config.seed
    if config.method == "fpl":
        shots = config.fpl.shots
        return Fpl(prompted, zero_shot_CD, images, shots=shots, batch_size=batch_size, seed=seed)
    if config.method == "grip":
        return Grip(prompted, zero_shot_CD, images, settings=config.grip, batch_size=batch_size, seed=seed)
    return Cpl(prompted, zero_shot_CD, images, settings=config.cpl, batch_size=batch_size, seed=seed)
