"""The artefacts of a run, in the order in which they are made; what is in the store already is found, not made."""

from collections.abc import Mapping

from raydapt.models.clip import load_clip
from raydapt.plan import Plan
from raydapt.stages.annotate import partial_labels_stage
from raydapt.stages.crops import crop_spec, crops_stage
from raydapt.stages.features import features_stage
from raydapt.stages.pixels import pixels_stage
from raydapt.stages.run import StageResult
from raydapt.workspace import Artefact

FEATURES, PIXELS, CROPS, PARTIAL_LABELS = "features", "pixels", "crops", "partial_labels"


def make_artefacts(plan: Plan) -> dict[str, StageResult]:
    """Everything that the method of a plan reads, by name."""
    made = {FEATURES: make_features(plan)}
    if plan.pixels is not None:
        made[PIXELS] = make_pixels(plan)
    if plan.crops is not None:
        made[CROPS] = make_crops(plan)
    if plan.partial_labels is not None:
        made[PARTIAL_LABELS] = partial_labels_stage(
            made[FEATURES].artefact,
            plan.partial_labels,
            clip=load_clip(plan.config.model.clip),
            settings=plan.config.coreg,
            store=plan.store,
        )
    return made


def artefacts_of(made: Mapping[str, StageResult]) -> dict[str, Artefact]:
    """The artefacts alone."""
    return {name: result.artefact for name, result in made.items()}


def make_features(plan: Plan) -> StageResult:
    """The features of the plan's source, made or found."""
    config = plan.config
    return features_stage(
        plan.source,
        clip_name=config.model.clip,
        clip_identity=plan.clip_identity,
        image_spec=plan.image_spec,
        settings=config.features,
        data=config.data,
        ray_settings=config.ray,
        store=plan.store,
    )


def make_pixels(plan: Plan) -> StageResult:
    """The decoded images of the plan's source, made or found."""
    config = plan.config
    return pixels_stage(
        plan.source,
        image_spec=plan.stored_spec,
        settings=config.features,
        data=config.data,
        ray_settings=config.ray,
        store=plan.store,
    )


def make_crops(plan: Plan) -> StageResult:
    """The features of the plan's images and of their crops, made or found."""
    config = plan.config
    return crops_stage(
        plan.source,
        clip_name=config.model.clip,
        clip_identity=plan.clip_identity,
        image_spec=plan.stored_spec,
        crops=crop_spec(config.fair),
        settings=config.features,
        data=config.data,
        ray_settings=config.ray,
        store=plan.store,
    )
