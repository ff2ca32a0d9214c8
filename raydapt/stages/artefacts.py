"""The artefacts of a run, in the order in which they are made; what is in the store already is found, not made."""

from collections.abc import Mapping
from dataclasses import replace

from raydapt.data.sources import Source, resolve_source
from raydapt.methods.latteclip.resolve import caption_kinds
from raydapt.models.clip import load_clip
from raydapt.run.plan import Plan
from raydapt.stages.annotate import Annotator, partial_labels_stage, template_annotator
from raydapt.stages.caption import GROUP_CAPTIONS
from raydapt.stages.crops import crop_spec, crops_stage
from raydapt.stages.features import features_stage
from raydapt.stages.pixels import pixels_stage
from raydapt.stages.run import StageResult
from raydapt.stages.synthetic_images import (
    HELD_OUT,
    HELD_OUT_FEATURES,
    HELD_OUT_PIXELS,
    SYNTHETIC,
    SYNTHETIC_FEATURES,
    SYNTHETIC_PIXELS,
    first_held_out,
)
from raydapt.store.artefact import Artefact

FEATURES, PIXELS, CROPS, PARTIAL_LABELS, LORA = "features", "pixels", "crops", "partial_labels", "lora"


def make_artefacts(plan: Plan, *, to_learn: bool = True) -> dict[str, StageResult]:
    """Everything that the method of a plan reads, by name.

    Args:
        plan: The run.
        to_learn: False for what a method that has learned needs to predict.
    """
    made = {FEATURES: make_features(plan)}
    if plan.pixels is not None:
        made[PIXELS] = make_pixels(plan)
    if plan.crops is not None:
        made[CROPS] = make_crops(plan)
    if to_learn and plan.partial_labels is not None:
        made[PARTIAL_LABELS] = partial_labels_stage(
            made[FEATURES].artefact,
            plan.partial_labels,
            lambda: _annotator(plan),
            store=plan.store,
        )
    if to_learn and (kinds := caption_kinds(plan.config)):
        from raydapt.stages.captioning import make_captions  # which makes features with the help of this file

        described = make_captions(plan, made[FEATURES].artefact, groups=GROUP_CAPTIONS in kinds)
        made |= {kind: described[kind] for kind in kinds}
    uses_synthetic = plan.reads_synthetic and (to_learn or plan.config.air.fusion_at_test)
    lora = _lora(plan) if uses_synthetic else None  # found or not, before anything trains it
    if plan.config.synthesis.held_out and to_learn:  # before the method's own, which are the first of the same images
        made |= make_held_out(plan, made[FEATURES].artefact)
    if uses_synthetic:
        from raydapt.stages.synthetic import make_synthetic  # diffusers takes seconds to import

        synthetic = make_synthetic(plan, made[FEATURES].artefact)
        if lora is not None and lora.artefact.complete():  # it is not, where the images of another day are all there
            made[LORA] = lora
        made[SYNTHETIC] = synthetic
        source = as_source(plan, made[SYNTHETIC].artefact)
        made[SYNTHETIC_FEATURES] = make_features(plan, source)
        if plan.pixels is not None:
            made[SYNTHETIC_PIXELS] = make_pixels(plan, source)
    return made


def _annotator(plan: Plan) -> Annotator:
    if plan.config.coreg.voters:
        from raydapt.run.voters import (
            run_annotator,  # which makes the artefacts of other runs with the help of this file
        )

        return run_annotator(plan)
    return template_annotator(load_clip(plan.config.model.clip), plan.classes.names, plan.config.coreg)


def _lora(plan: Plan) -> StageResult | None:
    """The adapter of the plan's pipeline, trained or still to be; None without one of our own."""
    from raydapt.stages.synthetic import plan_synthesis

    recipe = plan_synthesis(plan.config, plan.classes, plan.features).lora
    if recipe is None:
        return None
    artefact = plan.store.artefact_of(recipe)
    return StageResult(artefact=artefact, reused=artefact.complete())


def make_held_out(plan: Plan, features: Artefact) -> dict[str, StageResult]:
    """The synthetic images that nothing learns from, with what the scores read of them, made or found.

    They are the last of the images of each class: after those of the method, where it learns from some.

    Args:
        plan: The run.
        features: The features of its source.
    """
    from raydapt.stages.synthetic import make_synthetic  # diffusers takes seconds to import

    config = plan.config
    images = first_held_out(config) + config.synthesis.held_out
    whole = replace(plan, config=replace(config, synthesis=replace(config.synthesis, samples_per_class=images)))
    made = {HELD_OUT: make_synthetic(whole, features)}
    source = as_source(plan, made[HELD_OUT].artefact)
    made[HELD_OUT_FEATURES] = make_features(plan, source)
    if plan.pixels is not None:
        made[HELD_OUT_PIXELS] = make_pixels(plan, source)
    return made


def describe_synthesis(plan: Plan) -> list[str]:
    """What a run makes of synthetic images, in the order in which it is made, and what of it is there."""
    if not plan.reads_synthetic:
        return []
    from raydapt.stages.synthetic import plan_synthesis

    config, lines = plan.config, []
    wanted = plan_synthesis(config, plan.classes, plan.features)
    if wanted.lora is not None:
        there = "there" if plan.store.artefact_of(wanted.lora).complete() else f"{config.lora.steps:,} steps to be made"
        lines.append(f"lora {wanted.lora.fingerprint}: {there}")
    artefact = plan.store.artefact_of(wanted.job.recipe)
    parts = set(wanted.job.parts(config.synthesis.samples_per_class))
    present, per_class = len(artefact.committed_parts() & parts), config.synthesis.samples_per_class
    asked = f"{per_class:,} images of each of {len(plan.classes.names):,} classes"
    state = (
        "there" if present == len(parts) else f"{present:,} of {len(parts):,} parts there" if present else "to be made"
    )
    lines.append(f"synthetic {artefact.fingerprint}: {asked}, {state}")
    lines.append(f"features{' and pixels' if plan.pixels is not None else ''} of the synthetic images")
    return lines


def as_source(plan: Plan, artefact: Artefact) -> Source:
    """Finished images of the store as an image set like any other, in the order of their rows."""
    address = f"{plan.config.store.rstrip('/')}/{artefact.kind}/{artefact.fingerprint}"
    return resolve_source(address, rows_per_part=plan.config.features.rows_per_part)


def artefacts_of(made: Mapping[str, StageResult]) -> dict[str, Artefact]:
    """The artefacts alone."""
    return {name: result.artefact for name, result in made.items()}


def make_features(plan: Plan, source: Source | None = None) -> StageResult:
    """The features of the plan's source, or of another one, made or found."""
    config = plan.config
    return features_stage(
        source or plan.source,
        clip_name=config.model.clip,
        clip_identity=plan.clip_identity,
        image_spec=plan.image_spec,
        settings=config.features,
        data=config.data,
        ray_settings=config.ray,
        store=plan.store,
    )


def make_pixels(plan: Plan, source: Source | None = None) -> StageResult:
    """The decoded images of the plan's source, or of another one, made or found."""
    config = plan.config
    return pixels_stage(
        source or plan.source,
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
