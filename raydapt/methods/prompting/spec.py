"""What the methods share that learn a prompt in rounds, when they tell about themselves."""

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from raydapt.artefacts.inputs import InputKind
from raydapt.artefacts.spec import PlanFacts
from raydapt.errors import UserError
from raydapt.methods.air.part import AirPart
from raydapt.methods.contract import Method
from raydapt.methods.deployed import deployed_clip
from raydapt.methods.prompting.method import PromptMethod
from raydapt.methods.rates import PROMPT_STEP, WAY, Rate, adamw_rate, sgd_rate, steps_of_round
from raydapt.methods.spec import BuildContext, MethodSpec
from raydapt.models.clip import Clip
from raydapt.models.deployed import DeployedClip
from raydapt.models.prompts import PromptedClip
from raydapt.models.residual_prompt import Prompted, ResidualPrompt
from raydapt.settings.config import Config

_LEARNED = {
    "auto": "text prompt",
    "text": "text prompt",
    "visual": "visual prompt",
    "both": "text and visual prompt",
    "residual": "residual of the class embeddings",
}


_ONCE = {"selection": "top", "train_share": 1.0}


class PromptSpec(MethodSpec):
    """A method over a prompted CLIP; AiR is built over any of them."""

    pools_labels: bool = False
    """Whether labelled images are drawn from one pool with the pseudo-labelled ones."""

    @abstractmethod
    def build_over(self, context: BuildContext, air: AirPart | None) -> PromptMethod:
        """The method with what AiR adds, or without."""

    def build(self, context: BuildContext) -> Method:
        """The method by itself."""
        return self.over(context, None)

    def over(self, context: BuildContext, air: AirPart | None) -> PromptMethod:
        """As `build_over`, with the class prior of the settings."""
        method = self.build_over(context, air)
        method.prior = context.prior
        return method

    def input_kind(self, config: Config) -> InputKind:
        """A text prompt and a residual learn from cached features, a visual prompt from pixels."""
        return "pixels" if config.model.prompt in ("visual", "both") else "features"

    def unfit_for_features(self, config: Config, *, text_tower: bool) -> str | None:
        """Visual prompts look at pixels, text prompts go through the text tower."""
        if self.input_kind(config) == "pixels":
            return f"Setting model.prompt={config.model.prompt} learns from images: set model.prompt=residual or text."
        if config.model.prompt != "residual" and not text_tower:
            return (
                f"Setting model.prompt={config.model.prompt} needs a text tower: set model.prompt=residual, or name "
                "the model that made the features in model.clip and leave data.class_features out."
            )
        return None

    def whole_batch(self, config: Config) -> str | None:
        """The means of labelled and pseudo-labelled images that share a batch; CPL's are streams of their own."""
        if self.pools_labels and config.data.paradigm != "ul":
            return "labelled and pseudo-labelled images are averaged apart over the whole batch"
        return None

    def matters(self, config: Config) -> dict[str, Any]:
        """Its settings; those that a run does not go by, or that say what was once all there was, keep out of it."""
        own = super().matters(config)
        settings = own[self.name]
        if config.data.paradigm != "trzsl":
            settings.pop("trzsl_weight", None)
        for name, once in _ONCE.items():
            if settings.get(name) == once:
                del settings[name]
        return own

    def auto_rate(self, config: Config, facts: PlanFacts) -> Rate:
        """A step of fixed length: of a prompt as published, of a residual by how far class embeddings may move."""
        train, model = config.train, config.model
        if model.prompt != "residual":
            if train.optimizer != "sgd":
                raise UserError(
                    f"Setting train.learning_rate=auto knows steps of SGD for prompts, and train.optimizer="
                    f"{train.optimizer!r}: set train.optimizer=sgd, or give the rate as a number."
                )
            return Rate(PROMPT_STEP, unit_gradient=True)
        steps = steps_of_round(train, self.images_of_round(config, facts))
        scale = model.residual_scale
        if train.optimizer == "sgd":
            return sgd_rate(WAY, train, steps=steps, n_classes=len(facts.classes.names), scale=scale)
        return adamw_rate(WAY, train, steps=steps, width=facts.width, scale=scale)

    def images_of_round(self, config: Config, facts: PlanFacts) -> int | None:
        """Images that the longest round learns from; None where the source does not tell."""
        return facts.source.rows

    def learned(self, config: Config) -> str:
        """The kind of prompt."""
        return _LEARNED[config.model.prompt]

    def prompt(self, config: Config) -> str | None:
        """As in the settings."""
        return config.model.prompt

    def deployable(self, method: Method, clip: Clip) -> nn.Module:
        """CLIP's image tower, with the visual prompt where one was learned."""
        return deployed_prompt(method, clip)


@torch.no_grad()
def deployed_prompt(method: Method, clip: Clip) -> nn.Module:
    """CLIP's image tower, with the visual prompt where one was learned, in evaluation mode."""
    assert isinstance(method, PromptMethod)
    prompted = method.prompted
    if method.input_kind != "pixels" or prompted.visual is None:
        return deployed_clip(method, clip)
    prompt_LD = prompted.visual.prompt_LD
    if prompted.joint is not None and prompted.text is not None:
        _, prompt_LD = prompted.joint(prompted.text.context_LD, prompt_LD)
    return DeployedClip(clip, prompted.class_embeddings(), prompt_LD).eval()


def prompted_clip(context: BuildContext) -> Prompted:
    """The model that is learned."""
    config, classes = context.config, context.classes
    if config.model.prompt == "residual":
        return ResidualPrompt(context.clip, context.zero_shot_embeddings(), scale=config.model.residual_scale)
    return PromptedClip(context.clip, classes.names, classes.templates, config.model, seed=config.seed)
