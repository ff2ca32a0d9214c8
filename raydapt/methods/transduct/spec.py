"""What ``transduct`` tells about itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from raydapt.artefacts.rows import on_device
from raydapt.artefacts.spec import PlanFacts
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.spec import BuildContext, FinishedRun, MethodSpec
from raydapt.methods.transduct.fit import BaseLogits, TransductFit, fit
from raydapt.methods.transduct.method import Transduct
from raydapt.methods.transduct.outcome import transductive_outcome
from raydapt.methods.transduct.settings import TransductSettings
from raydapt.models.clip import Clip
from raydapt.models.deployed import DeployedClip
from raydapt.settings.config import Config

_LEAST_PROBABILITY = 1e-6
"""Of a class in the answers of other runs, so that none of them can rule it out alone."""


class TransductSpec(MethodSpec):
    """See `raydapt.methods.transduct.method.Transduct`."""

    name = "transduct"
    paradigms = ("ul",)
    fits_at_once = True
    teachers_setting = "transduct.over"
    reads_answers = True

    def build(self, context: BuildContext) -> Method:
        """Fitted to the unlabelled images; without images a method that is only to predict."""
        settings, clip, images = context.config.of(TransductSettings), context.clip, context.images
        text_CD = clip.class_embeddings(context.classes.names, context.classes.templates)
        fitted = None if images is None else fit_images(context, images, text_CD)
        return Transduct(clip, text_CD, settings.text_strength, fitted)

    def reads_second(self, config: Config) -> bool:
        """Always, where there are some."""
        return True

    def teacher_runs(self, config: Config) -> Sequence[str]:
        """As the settings say."""
        return config.of(TransductSettings).over

    def inputs(self, config: Config, facts: PlanFacts) -> list[str]:
        """What those runs have learned."""
        return list(facts.teachers)

    def finished(self, config: Config) -> Config:
        """New images are answered without those runs, and by the CLIP's features alone."""
        config = replace(config, model=replace(config.model, second="none"))
        return config.with_own(replace(config.of(TransductSettings), over=[]))

    def matters(self, config: Config) -> dict[str, Any]:
        """All but where those runs lie, and what is said of a second encoder where there is none."""
        own, unread = super().matters(config)["transduct"], {"over"}
        if config.model.second == "none":
            unread |= {name for name in own if name.startswith("second_")}
        return {"transduct": {name: value for name, value in own.items() if name not in unread}}

    def learned(self, config: Config) -> str:
        """The mixture."""
        return "class means and shares of a mixture"

    def outcome(self, finished: FinishedRun) -> dict[str, Any]:
        """The transductive answers for the images that were fitted, and the class shares found."""
        return {"transduct": transductive_outcome(finished)}

    def deployable(self, method: Method, clip: Clip) -> nn.Module:
        """The image tower with class embeddings and a bias: texts and mixture together are one linear head."""
        assert isinstance(method, Transduct)
        weight_CD = method.text_strength * method.text_CD + method.weight_CD / clip.logit_scale
        return DeployedClip(clip, weight_CD, bias_C=method.bias_C).eval()


def fit_images(context: BuildContext, images: TrainingImages, text_CD: Tensor) -> TransductFit:
    """The fit to the unlabelled images, from the texts or from the answers of other runs where there are some."""
    stated_C, device = context.prior.log_prior(), text_CD.device
    second_ND = images.second_ND
    return fit(
        on_device(images.of_unlabelled(images.feature_ND), device),
        text_CD,
        context.clip.logit_scale,
        context.config.of(TransductSettings),
        log_prior_C=None if stated_C is None else stated_C.to(text_CD),
        base=_answers_of_runs(images, device),
        second_NE=None if second_ND is None else on_device(images.of_unlabelled(second_ND), device),
    )


def _answers_of_runs(images: TrainingImages, device: torch.device) -> BaseLogits | None:
    """Log mean probabilities of other runs for a block of the unlabelled images; None without other runs."""
    if images.answer_NC is None:
        return None
    answer_UC = images.of_unlabelled(images.answer_NC)
    return lambda rows: answer_UC[rows].to(device).clamp_min(_LEAST_PROBABILITY).log()


SPEC = TransductSpec()
