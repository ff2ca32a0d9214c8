"""What a run will do, known before anything is computed: every `auto` resolved, every name and place checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, pieces_of
from raydapt.artefacts.features import features_recipe
from raydapt.artefacts.pixels import KIND as PIXELS
from raydapt.artefacts.pixels import pixels_recipe
from raydapt.artefacts.second import second_specs
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.artefacts.synthetic_images import HELD_OUT, HELD_OUT_FEATURES, HELD_OUT_PIXELS
from raydapt.data.classes import resolve_classes
from raydapt.data.labels import check_numbers, check_other_labels, without_other
from raydapt.data.nameless import say_nameless
from raydapt.data.sources import resolve_source
from raydapt.data.splits import adapted_splits
from raydapt.errors import UserError
from raydapt.methods.class_prior import class_prior
from raydapt.methods.spec import MethodSpec
from raydapt.methods.table import spec_of
from raydapt.methods.without_images import NO_IMAGES, check_method_of, check_source_of, decide_prompt
from raydapt.models.frozen import load_frozen
from raydapt.models.residual_prompt import PUBLISHED_SCALE
from raydapt.run.teachers import TeacherRun, answers_spec, teachers_of
from raydapt.settings.config import Config
from raydapt.settings.groups import TrainSettings
from raydapt.settings.tree import as_tree
from raydapt.stages.makers import where_made
from raydapt.stages.place import StagePlace, is_there
from raydapt.stages.work import decide_decode
from raydapt.store.fingerprint import fingerprint
from raydapt.store.run_record import Run, run_name
from raydapt.train.ray_train import check_workers, training_place

FEATURES = "features"
# Where a run happens and how often it saves: settings that change no result, and so no fingerprint.
_RESOURCES = (
    "cpus_per_worker",
    "gpus_per_worker",
    "checkpoint_every_s",
    "max_failures",
    "predict_batch_size",
    "cache_gb",
)
LEAST_CACHE_GB = 0.3
"""For sets that do not fit in it: windows of two streams then have some 70 blocks, which mix well (docs/cluster.md)."""
_STAGE_RESOURCES = ("actors", "cpus_per_actor", "gpus_per_actor", "compile")


@dataclass(frozen=True, kw_only=True)
class Plan(StagePlace):
    """A run, decided."""

    artefacts: tuple[ArtefactSpec, ...]
    """All that is made to learn, in the order in which it is made."""
    teachers: tuple[TeacherRun, ...]
    """Finished runs whose answers are learned from."""
    fingerprint: str
    run_name: str

    @property
    def spec(self) -> MethodSpec:
        """What the method tells about itself."""
        return spec_of(self.config.method)


def make_plan(config: Config) -> Plan:
    """Resolves the settings against the source and the model.

    Raises:
        UserError: For a source, class list, model or threshold that cannot work.
    """
    config, spec = decide_decode(decide_prompt(config)), spec_of(config.method)
    spec.check_paradigm(config)
    source = resolve_source(config.data.source, rows_per_part=config.features.rows_per_part, limit=config.data.limit)
    classes = resolve_classes(config.data, source)
    class_prior(config.data.class_prior, classes.names)
    check_other_labels(classes, config.data.other_labels)
    counts, other = dict(source.label_counts or ()), config.data.other_labels
    of_classes = {label: counts[label] for label in without_other(counts, other) if label is not None}
    check_numbers(classes, of_classes, setting=f"data.source={config.data.source!r}")
    clip = load_frozen(config.data, config.model)
    check_source_of(config, source, clip)
    teachers = teachers_of(config, classes)
    image_spec = clip.image_spec or NO_IMAGES
    facts = PlanFacts(
        source=source,
        classes=classes,
        image_spec=image_spec,
        clip_identity=clip.identity,
        features=features_recipe(source, clip.identity, image_spec, config.data, stage=config.features),
        teachers=tuple(teacher.digest for teacher in teachers),
        text_tower=config.data.class_features is None,
        width=clip.embed_dim,
    )
    facts = replace(facts, second=second_specs(config, facts) if _reads_second(config, spec) else ())
    data = replace(
        config.data,
        class_names=list(classes.names),
        templates=list(classes.templates),
        train_splits=adapted_splits(config.data.train_splits, config.data.protocol),
    )
    config = spec.decide_frozen(spec.decide_rate(spec.resolve(replace(config, data=data), facts), facts))
    spec.check_accumulation(config)
    check_workers(config.train, config.ray)
    if source.width:
        check_method_of(config, spec, text_tower=facts.text_tower)
    # Given features know nothing of the model, so its identity stands beside theirs.
    inputs = [facts.features.fingerprint, *([clip.identity] if source.width else []), *spec.inputs(config, facts)]
    inputs += [source.label_identity] if source.label_identity else []
    inputs += [made.recipe.fingerprint for made in facts.second[-1:] if made.recipe is not None]
    matters = _what_matters(config, spec)
    if spec.learns and _cache_decides(config, spec, facts):
        matters["train"]["cache_gb"] = config.train.cache_gb
    digest = fingerprint("run", matters, inputs)
    named = run_name(config.method, config.data.source, config.data.paradigm, config.seed, digest)
    return Plan(
        config=config,
        facts=facts,
        stored_spec=spec.stored_spec(config, image_spec),
        artefacts=artefacts_of_run(config, facts, teachers),
        teachers=teachers,
        fingerprint=digest,
        run_name=named if config.name == "auto" else config.name,
    )


def _reads_second(config: Config, spec: MethodSpec) -> bool:
    """Whether a second encoder's features are made; refuses ones that nothing would read."""
    if config.model.second == "none":
        return False
    if not spec.reads_second(config):
        raise UserError(
            f"Setting model.second={config.model.second!r}: {spec.name} reads no second encoder's features: leave it "
            "out, or set method=transduct or method=fusion."
        )
    return True


def artefacts_of_run(
    config: Config, facts: PlanFacts, teachers: Sequence[TeacherRun] = (), *, to_learn: bool = True
) -> tuple[ArtefactSpec, ...]:
    """What a run needs, in the order in which it is made.

    Args:
        config: Resolved.
        facts: Of the run.
        teachers: Finished runs whose answers are learned from.
        to_learn: False for what a method that has learned needs to predict.
    """
    spec = spec_of(config.method)
    specs = [ArtefactSpec(name=FEATURES, kind=FEATURES, recipe=facts.features)]
    pixels = spec.input_kind(config) == "pixels"
    if pixels:
        stored = spec.stored_spec(config, facts.image_spec)
        recipe = pixels_recipe(facts.source, stored, config.data, config.features.stored_pixels)
        specs.append(ArtefactSpec(name=PIXELS, kind=PIXELS, recipe=recipe))
    step = not spec.reads_answers
    specs += [answers_spec(i, teacher, facts, step=step) for i, teacher in enumerate(teachers)] if to_learn else []
    specs += facts.second if to_learn else ()
    own = spec.artefacts(config, facts, to_learn=to_learn)
    if to_learn and config.synthesis.held_out:  # before the method's own, which are the first of the same images
        own = [*held_out_artefacts(config, facts, first=spec.synthetic_images(config), pixels=pixels), *own]
    return tuple({artefact.name: artefact for artefact in (*specs, *own)}.values())


def held_out_artefacts(config: Config, facts: PlanFacts, *, first: int, pixels: bool) -> list[ArtefactSpec]:
    """The synthetic images that nothing learns from, with what the scores read of them.

    They are the last of the images of each class: after those of the method, where it learns from some.

    Args:
        config: Resolved.
        facts: Of the run.
        first: Images of each class that are left to the method.
        pixels: Whether the method reads pixels.
    """
    from raydapt.methods.air.specs import synthetic_specs  # diffusers takes seconds to import

    names = (HELD_OUT, HELD_OUT_FEATURES, HELD_OUT_PIXELS)
    return synthetic_specs(config, facts, samples=first + config.synthesis.held_out, names=names, pixels=pixels)


def describe_plan(plan: Plan) -> str:
    """The plan in words: inputs, stages, what is already there."""
    config, source, spec = plan.config, plan.source, plan.spec
    record = Run(config.runs, plan.run_name)
    rows = "an unknown number of" if source.rows is None else f"{source.rows:,}"
    names = ", ".join(plan.classes.names[:5]) + (", …" if len(plan.classes.names) > 5 else "")
    where = training_place(config.train, config.ray)
    learned = f"{spec.learned(config)}, {config.train.epochs} epochs a round, {where}" if spec.learns else "nothing"
    learned = f"{spec.learned(config)}, at once" if spec.fits_at_once else learned
    return "\n".join(
        [
            f"run       {record.path}{' (finished)' if record.exists('metrics.json') else ''}",
            f"images    {source.uri} ({source.kind}, {rows} images, {len(source.parts)} parts)",
            f"classes   {len(plan.classes.names)}: {names}",
            f"prompt    {plan.classes.templates[0]!r} and {len(plan.classes.templates) - 1} more",
            f"model     {_model(plan)}",
            f"method    {config.method}, {config.data.paradigm}, seed {config.seed}",
            *artefact_lines(plan),
            f"train     {learned}",
            "then      predictions.parquet, metrics.json, report.html",
            *(f"note      {note}" for note in (*source.notes, *say_nameless(plan.classes.names))),
        ]
    )


def artefact_lines(plan: Plan, *, where: bool = True) -> list[str]:
    """What a run makes to learn, a line each: how much of it is there, and where this process would make the rest."""
    return [f"stage     {_described(plan, artefact, where=where)}" for artefact in plan.artefacts]


def _model(plan: Plan) -> str:
    data = plan.config.data
    if data.class_features is not None:
        return f"none, class embeddings of {data.class_features}"
    return f"{plan.config.model.clip} ({plan.image_spec.size_px} px)"


def _described(plan: Plan, spec: ArtefactSpec, *, where: bool) -> str:
    """One artefact in words: its name, and how much of it is there."""
    if spec.recipe is None:
        return f"{spec.name}: {spec.kind} of {spec.of}, once it is there"
    artefact = plan.store.artefact_of(spec.recipe)
    if is_there(plan, spec):
        rows = f" ({artefact.manifest.rows:,} rows)" if spec.parts is None else ""
        return f"{spec.name} {artefact.fingerprint}: there{rows}"
    wanted = _wanted_parts(plan, spec)
    there = len(artefact.committed_parts() & wanted)
    state = f"{there:,} of {len(wanted):,} parts there" if there else "to be made"
    if where:
        state += f"{', the rest' if there else ''} {where_made(plan, spec, 1 - there / max(1, len(wanted)))}"
    return f"{spec.name} {artefact.fingerprint}: {state}{f', {spec.cost}' if spec.cost else ''}"


def _wanted_parts(plan: Plan, spec: ArtefactSpec) -> set[int]:
    if spec.parts is not None:
        return set(spec.parts)
    if spec.kind in (IMAGE_CAPTIONS, GROUP_CAPTIONS):
        return {piece.number for piece in pieces_of(plan.source)}
    return {part.index for part in plan.source.parts}


def _what_matters(config: Config, spec: MethodSpec) -> dict[str, Any]:
    """The settings that change a result, for the run's fingerprint."""
    tree = as_tree(config)
    matters = {"method": config.method, "seed": config.seed, "data": tree["data"], "model": tree["model"]}
    del matters["data"]["max_error_share"]
    if matters["data"]["first_label"] in ("auto", 0):  # which mean the same, and what it was before it could be said
        del matters["data"]["first_label"]
    if not config.data.rejects:  # all such settings learn and answer the same
        del matters["data"]["reject"]
    _leave_out_defaults(matters["data"], matters["model"])
    if spec.learns and not spec.fits_at_once:
        matters["train"] = {key: value for key, value in tree["train"].items() if key not in _RESOURCES}
        if config.train.schedule_epochs is None:
            del matters["train"]["schedule_epochs"]
        if not config.train.unit_gradient:  # as it was before it could be said
            del matters["train"]["unit_gradient"]
    matters |= spec.matters(config)
    if not config.guard:
        matters["guard"] = False
    if config.predict.with_frozen:
        matters["predict"] = tree["predict"]
    if spec.input_kind(config) == "pixels" and config.features.stored_pixels == "jpeg":  # WebP changes no pixel
        matters["stored_pixels"] = config.features.stored_pixels
    if spec.synthetic_images(config) or config.synthesis.held_out:
        left_out = _STAGE_RESOURCES if config.synthesis.held_out else (*_STAGE_RESOURCES, "held_out")
        matters["lora"] = tree["lora"]
        matters["synthesis"] = {key: value for key, value in tree["synthesis"].items() if key not in left_out}
        if config.synthesis.precision == "auto":  # as it was before it could be said
            del matters["synthesis"]["precision"]
    return matters


def _cache_decides(config: Config, spec: MethodSpec, facts: PlanFacts) -> bool:
    """Whether the memory for decoded images decides the order of training: some set of them is larger.

    Raises:
        UserError: If it is so little that batches would be of a few places of the set.
    """
    cache_gb = config.train.cache_gb
    if spec.input_kind(config) != "pixels" or spec.fits_at_once:
        return False
    if facts.source.rows is None:  # nobody has counted: as ever with the memory that nobody has asked for
        return cache_gb != TrainSettings().cache_gb
    most = max(facts.source.rows, spec.synthetic_images(config) * len(facts.classes.names))
    needed_gb = most * 3 * spec.stored_spec(config, facts.image_spec).size_px ** 2 / 1e9
    if cache_gb < min(LEAST_CACHE_GB, needed_gb):
        raise UserError(
            f"Setting train.cache_gb={cache_gb:g} is too little to mix the images of a set of {needed_gb:.2g} GB in "
            f"batches: give {min(LEAST_CACHE_GB, math.ceil(needed_gb * 100) / 100):g} or more."
        )
    return needed_gb > cache_gb


def _leave_out_defaults(data: dict[str, Any], model: dict[str, Any]) -> None:
    """Settings that a run does not go by, so that it keeps the name that it had before they could be said."""
    del data["protocol"]  # names, templates and splits are resolved
    if data["class_prior"] == "unknown":
        del data["class_prior"]
    del model["second"]  # an input of the runs that read it
    if not data["other_labels"]:
        del data["other_labels"]
    given = data.pop("class_features") is not None  # what matters of the file is its content, an input of the run
    if given:
        del model["clip"]
    else:
        del model["logit_scale"]
    if model["residual_scale"] == PUBLISHED_SCALE:
        del model["residual_scale"]
