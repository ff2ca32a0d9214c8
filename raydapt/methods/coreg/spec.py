"""What ``coreg`` tells about itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from raydapt.artefacts.inputs import InputKind
from raydapt.artefacts.partial_labels import KIND, partial_labels_recipe
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.data.augment import Augmentation
from raydapt.data.decode import ImageSpec
from raydapt.errors import UserError
from raydapt.methods.contract import Method
from raydapt.methods.coreg.deployed import DeployedFeatureStudents, DeployedStudents
from raydapt.methods.coreg.method import CoReg, input_kind_of
from raydapt.methods.coreg.outcome import coreg_outcome
from raydapt.methods.coreg.resolve import resolve_coreg
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.methods.spec import BuildContext, FinishedRun, MethodSpec
from raydapt.models.clip import Clip
from raydapt.models.feature_views import FeatureViews
from raydapt.settings.config import Config

_RULES = 2
"""Raised when the same settings come to other results, so that runs are learned anew."""
_NO_RESULT = ("voters", "gpu_per_student")
"""Not where teachers lie matters, but what they know, which is among the inputs."""


_MAGNITUDE_OF_FEATURES = 5.0
_MAGNITUDES = 20
"""A strong view of features is without ``coreg.magnitude`` / 20 of its values; the default, 5, is a quarter."""


class CoregSpec(MethodSpec):
    """See `raydapt.methods.coreg.method.CoReg`."""

    name = "coreg"
    teachers_setting = "coreg.voters"
    paradigms = ("ul",)
    published_rate = 0.01
    deployed_words = "two student networks, summed"

    def build(self, context: BuildContext) -> Method:
        """Both students with their memory."""
        config = context.config
        settings = config.of(CoregSettings)
        if settings.gpu_per_student and context.images is not None and torch.cuda.device_count() < 2:
            raise UserError(
                f"Setting coreg.gpu_per_student=true: a worker sees {torch.cuda.device_count()} GPUs and needs two: "
                "set train.gpus_per_worker=2 where nodes have them, or coreg.gpu_per_student=false."
            )
        method = CoReg(
            settings,
            _views_of(settings, context.clip),
            context.images,
            n_classes=len(context.classes.names),
            epochs=config.train.epochs,
            batch_size=config.train.batch_size,
            seed=config.seed,
            width=context.clip.embed_dim,
        )
        method.expected_C = context.prior.target()
        return method

    def resolve(self, config: Config, facts: PlanFacts) -> Config:
        """Templates as a list, lengths that fit each other."""
        return config.with_own(resolve_coreg(config, text_tower=facts.text_tower))

    def input_kind(self, config: Config) -> InputKind:
        """Pixels, but for students that take features."""
        return input_kind_of(config.of(CoregSettings))

    def unfit_for_features(self, config: Config, *, text_tower: bool) -> str | None:
        """Students that look at pixels cannot."""
        settings = config.of(CoregSettings)
        if self.input_kind(config) == "features":
            return None
        return f"Setting coreg.student={settings.student} looks at images: set coreg.student=linear or mlp."

    def whole_batch(self, config: Config) -> str | None:
        """Its contrast, MixUp and batch norms."""
        return "its contrast, MixUp and batch norms look at the whole batch"

    def answers_with_frozen(self, config: Config) -> bool:
        """Students of features: on development sets never worse in any variant (docs/methods/coreg.md)."""
        return self.input_kind(config) == "features"

    def stored_spec(self, config: Config, image_spec: ImageSpec) -> ImageSpec:
        """As ``coreg.image_size_px`` says."""
        return replace(image_spec, size_px=config.of(CoregSettings).image_size_px)

    def artefacts(self, config: Config, facts: PlanFacts, *, to_learn: bool = True) -> list[ArtefactSpec]:
        """Partial labels, which nothing but learning needs."""
        if not to_learn:
            return []
        settings = config.of(CoregSettings)
        recipe = partial_labels_recipe(
            replace(facts.features, weights=facts.clip_identity),  # given features say nothing of what annotates them
            facts.classes.names,
            annotation=settings.annotation,
            topk=settings.topk,
            prob_ratio=settings.prob_ratio,
            templates=list(settings.templates),
            voters=facts.teachers,
        )
        answers = tuple(f"answers_{number}" for number in range(len(facts.teachers)))
        return [ArtefactSpec(name=KIND, kind=KIND, recipe=recipe, depends_on=("features", *answers), job=settings)]

    def inputs(self, config: Config, facts: PlanFacts) -> list[str]:
        """What the teacher runs have learned."""
        return list(facts.teachers)

    def finished(self, config: Config) -> Config:
        """A student outlives its teachers."""
        return config.with_own(replace(config.of(CoregSettings), voters=[]))

    def teacher_runs(self, config: Config) -> Sequence[str]:
        """As the settings say."""
        return config.of(CoregSettings).voters

    def matters(self, config: Config) -> dict[str, Any]:
        """All but where teachers lie, how students are placed, and that every image is dealt out once."""
        own = super().matters(config)["coreg"]
        unsaid = _NO_RESULT if own["epoch_images"] else (*_NO_RESULT, "epoch_images")
        return {"coreg": {name: value for name, value in own.items() if name not in unsaid}, "rules": _RULES}

    def learned(self, config: Config) -> str:
        """Both students."""
        return f"two {config.of(CoregSettings).student} students"

    def outcome(self, finished: FinishedRun) -> dict[str, Any]:
        """Annotation, division, students, and what is deployed beside CLIP's image tower."""
        return {"coreg": coreg_outcome(finished)}

    def deployable(self, method: Method, clip: Clip) -> nn.Module:
        """Both students, summed; behind CLIP's image tower where they take features."""
        assert isinstance(method, CoReg)
        if method.input_kind == "features":
            return DeployedFeatureStudents(method, clip).eval()
        return DeployedStudents(method).eval()

    def deployed_px(self, config: Config, image_spec: ImageSpec) -> int:
        """As ``coreg.image_size_px`` says, or as the image tower whose features are taken."""
        settings = config.of(CoregSettings)
        return image_spec.size_px if input_kind_of(settings) == "features" else settings.image_size_px


def _views_of(settings: CoregSettings, clip: Clip) -> Augmentation | FeatureViews:
    """How views are made of images, or of features."""
    if input_kind_of(settings) == "features":
        magnitude = _MAGNITUDE_OF_FEATURES if settings.magnitude == "random" else settings.magnitude
        return FeatureViews(missing_share=magnitude / _MAGNITUDES)
    return Augmentation(
        mean=clip.image_spec.mean,
        std=clip.image_spec.std,
        padding_px=settings.crop_padding_px,
        mirror=settings.mirror,
        quarter_turns=settings.quarter_turns,
        magnitude=0.0 if settings.magnitude == "random" else settings.magnitude,
        cutout_px=settings.cutout_px,
        published=settings.magnitude == "random",
    )


SPEC = CoregSpec()
