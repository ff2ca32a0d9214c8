"""Which round a run keeps: the guard looks at every one of them.

Self-training in rounds often gains first and loses later, where classes are unequal or absent. What the guard would
reject at the end was often worth much some rounds before.

Legend: U unlabelled training images, S those that the evidence is read off.
"""

from functools import partial

import torch
from torch import Tensor

from raydapt.artefacts.inputs import InputKind
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.even_sample import even_sample
from raydapt.methods.guard import SAMPLE, judge, neighbourhood_of
from raydapt.methods.table import spec_of
from raydapt.settings.config import Config
from raydapt.train.loop import JudgeRound, predict

_MOST_PIXELS = 512
"""Images that are looked at where each has to be encoded."""


def is_guarded(config: Config) -> bool:
    """Whether there is anything to guard: another answer than zero-shot's, and no label that speaks for it."""
    return config.guard and spec_of(config.method).guarded and config.data.paradigm == "ul"


def round_guard(
    config: Config, zero_shot: Method, images: TrainingImages, *, input_kind: InputKind, device: torch.device
) -> JudgeRound | None:
    """The guard's verdict on a method at the end of a round; None where nothing is guarded.

    Args:
        config: The settings, resolved.
        zero_shot: What the guard compares with, on `device`.
        images: What the method may see.
        input_kind: What the method takes for an image; of pixels fewer are looked at, since each has to be encoded.
        device: Of both.
    """
    if not is_guarded(config) or len(images.unlabelled_U) < 2:
        return None
    index_S = even_sample(images.unlabelled_U.cpu(), _MOST_PIXELS if input_kind == "pixels" else SAMPLE)

    def answers(method: Method) -> Tensor:
        take = partial(images.take, input_kind=method.input_kind)
        return predict(method, take, index_S, batch_size=config.train.predict_batch_size, device=device)

    zero_SC, near = answers(zero_shot), neighbourhood_of(images.feature_ND[index_S])
    return lambda method: judge(zero_SC, answers(method), near).verdict
