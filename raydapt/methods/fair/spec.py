"""What ``fair`` tells about itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raydapt.artefacts.crops import KIND, crops_recipe
from raydapt.artefacts.inputs import InputKind
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.data.decode import ImageSpec
from raydapt.methods.contract import Method
from raydapt.methods.fair.method import Fair, input_kind_of
from raydapt.methods.fair.outcome import alignment_outcome
from raydapt.methods.fair.resolve import crop_spec, resolve_fair
from raydapt.methods.fair.settings import FairSettings
from raydapt.methods.rates import WAY, Rate, adamw_rate, sgd_rate, steps_of_round
from raydapt.methods.spec import BuildContext, FinishedRun, MethodSpec
from raydapt.settings.config import Config


class CropSpecs(MethodSpec):
    """What ``fair`` and ``wca`` share: descriptions, and crops of stored images that may be larger than the model's."""

    def resolve(self, config: Config, facts: PlanFacts) -> Config:
        """Descriptions read and checked, sizes decided."""
        return config.with_own(resolve_fair(config, facts))

    def unfit_for_features(self, config: Config, *, text_tower: bool) -> str | None:
        """LayerNorms and crops need images, descriptions a text tower."""
        fair = config.of(FairSettings)
        if self.input_kind(config) == "pixels":
            return "Setting fair.layer_norms=true changes the image tower: set it to false or auto."
        if fair.n_crops:
            return f"Setting fair.crops={fair.n_crops} cuts images: set it to 0 or auto."
        if not text_tower and fair.anchor_text == "descriptions":
            return (
                "Setting fair.descriptions needs a text tower: put the embeddings of the descriptions into "
                "data.class_features as rows of their class, or name the model in model.clip."
            )
        return None

    def stored_spec(self, config: Config, image_spec: ImageSpec) -> ImageSpec:
        """As ``fair.image_px`` says."""
        size = config.of(FairSettings).image_px
        return image_spec if size == "auto" else replace(image_spec, size_px=size)

    def artefacts(self, config: Config, facts: PlanFacts, *, to_learn: bool = True) -> list[ArtefactSpec]:
        """Features of crops, where the image tower stays as it is."""
        if self.input_kind(config) != "crops":
            return []
        spec = crop_spec(config.of(FairSettings))
        stored = self.stored_spec(config, facts.image_spec)
        recipe = crops_recipe(facts.source, facts.clip_identity, stored, config.data, spec, stage=config.features)
        return [ArtefactSpec(name=KIND, kind=KIND, recipe=recipe, depends_on=(), job=spec)]

    def matters(self, config: Config) -> dict[str, Any]:
        """All settings; where labels come from only if it is not what it was before that could be said."""
        own = super().matters(config)
        if "fair" in own and own["fair"].get("labels_from") == "crops":
            own["fair"] = {name: value for name, value in own["fair"].items() if name != "labels_from"}
        return own

    def starts_from(self, config: Config) -> str:
        """Its descriptions."""
        return "descriptions"

    def descriptions(self, config: Config) -> Mapping[str, Sequence[str]] | None:
        """Those of the settings; a file is not read, since it need not be where a worker runs."""
        given = config.of(FairSettings).descriptions
        return None if isinstance(given, str) else given


class FairSpec(CropSpecs):
    """See `raydapt.methods.fair.method.Fair`."""

    name = "fair"
    paradigms = ("ul",)
    published_rate = 1e-4

    def build(self, context: BuildContext) -> Method:
        """The method."""
        config = context.config
        settings, batch_size = config.of(FairSettings), config.train.batch_size
        method = Fair(context.clip, context.classes, context.images, settings=settings, batch_size=batch_size)
        method.target_C = context.prior.score_reference()
        if method.target_C is not None:
            method.predicted_C.copy_(method.target_C)
        return method

    def auto_rate(self, config: Config, facts: PlanFacts) -> Rate:
        """By how far an anchor may move; LayerNorms go with the same rate."""
        train = config.train
        steps = steps_of_round(train, facts.source.rows)
        if train.optimizer == "sgd":
            return sgd_rate(WAY, train, steps=steps, n_classes=len(facts.classes.names))
        return adamw_rate(WAY, train, steps=steps, width=facts.width)

    def input_kind(self, config: Config) -> InputKind:
        """Pixels where LayerNorms are learned, else cached features with those of crops."""
        return input_kind_of(config.of(FairSettings))

    def learned(self, config: Config) -> str:
        """Anchors, LayerNorms, or both."""
        fair = config.of(FairSettings)
        parts = ["class anchors"] * fair.learn_anchors + ["LayerNorms of the image tower"] * fair.learns_norms
        return " and ".join(parts) or "nothing"

    def whole_batch(self, config: Config) -> str | None:
        """Its fairness term."""
        return "fair.fairness looks at the whole batch" if config.of(FairSettings).fairness else None

    def matters(self, config: Config) -> dict[str, Any]:
        """Its settings; without the fairness term not how long that remembers."""
        own = super().matters(config)
        if not own[self.name]["fairness"]:
            del own[self.name]["fairness_memory"]
        return own

    def outcome(self, finished: FinishedRun) -> dict[str, Any]:
        """Crops that counted, weights beside correctness, anchors that moved."""
        return {"alignment": alignment_outcome(finished)}


SPEC = FairSpec()
