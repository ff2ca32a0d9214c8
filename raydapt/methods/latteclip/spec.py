"""What ``latteclip`` tells about itself."""

from typing import Any

import torch
from torch import nn

from raydapt.artefacts.captions import caption_recipes
from raydapt.artefacts.inputs import InputKind
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.methods.contract import Method
from raydapt.methods.latteclip.method import LatteClip, input_kind_of
from raydapt.methods.latteclip.outcome import latteclip_outcome
from raydapt.methods.latteclip.resolve import caption_kinds, check_latteclip, latteclip_learns, with_published_warmup
from raydapt.methods.latteclip.settings import LatteclipSettings
from raydapt.methods.rates import WAY, Rate, adamw_rate, steps_of_round
from raydapt.methods.spec import BuildContext, FinishedRun, MethodSpec
from raydapt.models.clip import Clip
from raydapt.models.deployed import DeployedClip
from raydapt.settings.config import Config


class LatteclipSpec(MethodSpec):
    """See `raydapt.methods.latteclip.method.LatteClip`."""

    name = "latteclip"
    paradigms = ("ul",)
    published_rate = 1e-7

    def build(self, context: BuildContext) -> Method:
        """The method."""
        config = context.config
        return LatteClip(
            context.clip,
            context.classes,
            context.images,
            settings=config.of(LatteclipSettings),
            model=config.model,
            epochs=config.train.epochs,
            batch_size=config.train.batch_size,
            seed=config.seed,
        )

    def resolve(self, config: Config, facts: PlanFacts) -> Config:
        """Refuses what cannot work; the published warm-up, where the protocol says so."""
        check_latteclip(config)
        return with_published_warmup(config)

    def auto_rate(self, config: Config, facts: PlanFacts) -> Rate:
        """Of a residual, by how far class embeddings may move; of all else as published."""
        train = config.train
        if config.of(LatteclipSettings).tune != "residual" or train.optimizer == "sgd":
            return super().auto_rate(config, facts)
        steps, scale = steps_of_round(train, facts.source.rows), config.model.residual_scale
        return adamw_rate(WAY, train, steps=steps, width=facts.width, scale=scale)

    def input_kind(self, config: Config) -> InputKind:
        """Features for a text prompt, pixels for all else."""
        return input_kind_of(config.of(LatteclipSettings))

    def unfit_for_features(self, config: Config, *, text_tower: bool) -> str | None:
        """Towers and visual prompts need images, and so do captions; a text prompt needs the text tower."""
        settings, kinds = config.of(LatteclipSettings), caption_kinds(config)
        if kinds:
            return (
                "Settings latteclip.use_image_caption and use_batch_caption describe images: set both to false, which "
                "leaves the class prompts."
            )
        if self.input_kind(config) == "pixels":
            return f"Setting latteclip.tune={settings.tune} changes the image tower: set latteclip.tune=residual."
        if settings.tune == "text_prompt" and not text_tower:
            return (
                "Setting latteclip.tune=text_prompt needs a text tower: set latteclip.tune=residual, or name the model "
                "that made the features in model.clip and leave data.class_features out."
            )
        return None

    def artefacts(self, config: Config, facts: PlanFacts, *, to_learn: bool = True) -> list[ArtefactSpec]:
        """Captions of images and of groups, as far as they are used; nothing but learning needs them."""
        kinds = caption_kinds(config) if to_learn else ()
        if not kinds:
            return []
        recipes = caption_recipes(config.caption, config.data, facts.source, facts.classes, facts.features)
        return [ArtefactSpec(name=kind, kind=kind, recipe=recipes[kind], depends_on=("features",)) for kind in kinds]

    def inputs(self, config: Config, facts: PlanFacts) -> list[str]:
        """The captions."""
        return [spec.recipe.fingerprint for spec in self.artefacts(config, facts) if spec.recipe is not None]

    def learned(self, config: Config) -> str:
        """Towers, LayerNorms, adapters or a prompt."""
        return latteclip_learns(config.of(LatteclipSettings))

    def whole_batch(self, config: Config) -> str | None:
        """Its contrast."""
        return "its contrast is between all images of a batch"

    def prompt(self, config: Config) -> str | None:
        """The kind of prompt, where one is learned."""
        tune = config.of(LatteclipSettings).tune
        return tune.removesuffix("_prompt") if tune.endswith("_prompt") or tune == "residual" else None

    def outcome(self, finished: FinishedRun) -> dict[str, Any]:
        """What texts and prototypes did, with some captions to look at."""
        return {"latteclip": latteclip_outcome(finished)}

    @torch.no_grad()
    def deployable(self, method: Method, clip: Clip) -> nn.Module:
        """The image tower as it was tuned, against the prototypes."""
        assert isinstance(method, LatteClip)
        prompt_LD = None if method.visual_prompt is None else method.visual_prompt.prompt_LD
        model = clip if method.towers is None else method.towers.plain()
        module = DeployedClip(model, method.class_embeddings(), prompt_LD)
        module.scale = float(method.scale)
        return module.eval()


SPEC = LatteclipSpec()
