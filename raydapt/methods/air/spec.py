"""What ``air`` tells about itself: its base, synthetic images beside it."""

import hashlib
from typing import Any

from torch import nn

from raydapt.artefacts.inputs import InputKind
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.errors import UserError
from raydapt.methods.air.outcome import synthetic_outcome
from raydapt.methods.air.part import AirPart
from raydapt.methods.air.settings import AirSettings
from raydapt.methods.contract import Method
from raydapt.methods.prompting.spec import PromptSpec, deployed_prompt
from raydapt.methods.rates import Rate
from raydapt.methods.spec import BuildContext, FinishedRun, MethodSpec
from raydapt.methods.table import spec_of
from raydapt.models.clip import Clip
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree


class AirSpec(MethodSpec):
    """See `raydapt.methods.air.part.AirPart`; all that is not said here is the base's."""

    name = "air"

    def base(self, config: Config) -> PromptSpec:
        """The method that gets the images' help."""
        base = spec_of(config.of(AirSettings).base)
        assert isinstance(base, PromptSpec)
        return base

    def build(self, context: BuildContext) -> Method:
        """The base with AiR's part, or alone where AiR adds nothing."""
        return self.base(context.config).over(context, _part(context))

    def resolve(self, config: Config, facts: PlanFacts) -> Config:
        """As the base's; refuses settings that leave nothing to learn from."""
        air = config.of(AirSettings)
        if air.synthetic_only and not air.synthetic_weight:
            raise UserError(
                "Settings air.synthetic_only=true and air.synthetic_weight=0 leave nothing to learn from: "
                "raise the weight, or set air.synthetic_only=false."
            )
        return self.base(config).resolve(config, facts)

    def auto_rate(self, config: Config, facts: PlanFacts) -> Rate:
        """As the base."""
        return self.base(config).auto_rate(config, facts)

    def input_kind(self, config: Config) -> InputKind:
        """As the base."""
        return self.base(config).input_kind(config)

    def unfit_for_features(self, config: Config, *, text_tower: bool) -> str | None:
        """As the base; synthetic images need the image tower, and a LoRA real ones."""
        air, lora = config.of(AirSettings), config.lora.enabled and config.synthesis.lora is None
        if has_a_part(air) and not text_tower:
            return (
                "Settings air.fusion_weight and air.synthetic_weight need a model that encodes synthetic images: set "
                "both to 0, or name the model that made the features in model.clip and leave data.class_features out."
            )
        if has_a_part(air) and lora:
            return "Setting lora.enabled=true learns from images: set it to false, or give synthesis.lora."
        return self.base(config).unfit_for_features(config, text_tower=text_tower)

    def artefacts(self, config: Config, facts: PlanFacts, *, to_learn: bool = True) -> list[ArtefactSpec]:
        """Synthetic images with what the image stages make of them; to predict only where they judge there too."""
        air = config.of(AirSettings)
        if not has_a_part(air) or not (to_learn or air.fusion_at_test):
            return []
        from raydapt.methods.air.specs import synthetic_specs  # diffusers takes seconds to import

        samples, pixels = config.synthesis.samples_per_class, self.input_kind(config) == "pixels"
        return synthetic_specs(config, facts, samples=samples, pixels=pixels)

    def inputs(self, config: Config, facts: PlanFacts) -> list[str]:
        """The diffusion pipeline, and LoRA weights that were given."""
        if not has_a_part(config.of(AirSettings)):
            return []
        from raydapt.models.pipelines import pipeline_identity  # diffusers takes seconds to import

        given = config.synthesis.lora
        if given is None:
            return [pipeline_identity(config.synthesis.pipeline)]
        from raydapt.models.diffusion_lora import read_lora

        weights = read_lora(given, rank=config.lora.rank)  # which may be trained anew in place
        return [pipeline_identity(config.synthesis.pipeline), hashlib.sha256(weights).hexdigest()]

    def synthetic_images(self, config: Config) -> int:
        """All that are made but those held out."""
        return config.synthesis.samples_per_class if has_a_part(config.of(AirSettings)) else 0

    def rounds(self, config: Config) -> int:
        """As the base; one without pseudo-labels."""
        return 1 if config.of(AirSettings).synthetic_only else self.base(config).rounds(config)

    def whole_batch(self, config: Config) -> str | None:
        """As the base."""
        return self.base(config).whole_batch(config)

    def matters(self, config: Config) -> dict[str, Any]:
        """As the base, with its own; a scale that nothing reads is left as it was before it had another default."""
        own = as_tree(config)[self.name]
        if not own["fusion_weight"]:
            own["image_scale"] = "model"
        if config.data.paradigm != "trzsl" or not has_a_part(config.of(AirSettings)):
            del own["trzsl_classes"]
        return {self.name: own} | self.base(config).matters(config)

    def learned(self, config: Config) -> str:
        """As the base."""
        return self.base(config).learned(config)

    def prompt(self, config: Config) -> str | None:
        """As the base."""
        return self.base(config).prompt(config)

    def outcome(self, finished: FinishedRun) -> dict[str, Any]:
        """How many synthetic images zero-shot accepts, and some of them to look at."""
        return synthetic_outcome(finished)

    def deployable(self, method: Method, clip: Clip) -> nn.Module:
        """As the bases, which all do alike."""
        return deployed_prompt(method, clip)


def has_a_part(settings: AirSettings) -> bool:
    """Whether AiR differs from its base at all."""
    return settings.fusion_weight > 0 or settings.synthetic_weight > 0


def _part(context: BuildContext) -> AirPart | None:
    """What AiR adds; None for a method that is only to predict and does so as its base does."""
    settings = context.config.of(AirSettings)
    if not has_a_part(settings) or (context.images is None and not settings.fusion_at_test):
        return None
    made = context.synthetic if context.images is None else context.images.synthetic
    if made is None:
        raise ValueError("air was built without synthetic images")
    return AirPart(settings, made, context.zero_shot_embeddings(), context.clip.logit_scale)


SPEC = AirSpec()
