"""What a run will do, known before anything is computed: every `auto` resolved, every name and place checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raydapt.data.classes import ClassSpace, resolve_classes
from raydapt.data.decode import ImageSpec
from raydapt.data.named_sets import default_thresholds, named_set
from raydapt.data.sources import Source, resolve_source
from raydapt.data.splits import seen_unseen_classes
from raydapt.errors import UserError
from raydapt.methods.build import LEARNING_METHODS, has_a_part
from raydapt.methods.contract import Reads
from raydapt.methods.coreg.resolve import resolve_coreg, voter_digests
from raydapt.methods.cpl.settings import CplSettings
from raydapt.methods.fair.method import reads_of
from raydapt.methods.fair.resolve import resolve_fair
from raydapt.methods.latteclip.method import reads_of as latteclip_reads_of
from raydapt.methods.latteclip.resolve import caption_kinds, check_latteclip, latteclip_learns
from raydapt.models.clip import load_clip
from raydapt.settings.config import Config
from raydapt.settings.groups import DataSettings
from raydapt.settings.tree import as_tree
from raydapt.stages.annotate import partial_labels_recipe
from raydapt.stages.crops import crop_spec, crops_recipe
from raydapt.stages.features import FeatureTable, features_recipe
from raydapt.stages.pixels import pixels_recipe
from raydapt.store.artefact import Artefact, Store
from raydapt.store.fingerprint import Recipe, fingerprint
from raydapt.store.run_record import Run, run_name

FAIR_METHODS = ("fair", "wca")
# Where a run happens and how often it saves: settings that change no result, and so no fingerprint.
_RESOURCES = ("cpus_per_worker", "gpus_per_worker", "checkpoint_every_s", "max_failures", "predict_batch_size")
_STAGE_RESOURCES = ("actors", "cpus_per_actor", "gpus_per_actor")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, decided."""

    config: Config
    """Resolved: no `auto` but for resources."""
    source: Source
    classes: ClassSpace
    image_spec: ImageSpec
    clip_identity: str
    features: Recipe
    pixels: Recipe | None
    """None when the method reads cached features alone."""
    crops: Recipe | None
    """None unless the method reads features of crops."""
    stored_spec: ImageSpec
    """How images are stored where a method reads them, or cuts them."""
    partial_labels: Recipe | None
    """None when the method does not learn from partial labels."""
    captions: tuple[Recipe, ...]
    """Of the images and of groups, as far as the method reads them."""
    fingerprint: str
    run_name: str

    @property
    def reads_synthetic(self) -> bool:
        """Whether the method learns from synthetic images."""
        return _reads_synthetic(self.config)

    @property
    def store(self) -> Store:
        """The artefact store of the settings."""
        return Store(self.config.store)


def make_plan(config: Config) -> Plan:
    """Resolves the settings against the source and the model.

    Raises:
        UserError: For a source, class list, model or threshold that cannot work.
    """
    source = resolve_source(config.data.source, rows_per_part=config.features.rows_per_part, limit=config.data.limit)
    classes = resolve_classes(config.data, source)
    clip = load_clip(config.model.clip)
    config = _resolve(config, classes, clip.image_spec)
    features = features_recipe(source, clip.identity, clip.image_spec, config.data)
    reads, stored_spec = _reads(config), _stored_spec(config, clip.image_spec)
    pixels = pixels_recipe(source, stored_spec, config.data) if reads == "pixels" else None
    spec = crop_spec(config.fair)
    crops = crops_recipe(source, clip.identity, stored_spec, config.data, spec) if reads == "crops" else None
    voters = voter_digests(config, classes) if config.method == "coreg" else ()
    inputs = [features.fingerprint, *voters]
    if _reads_synthetic(config):
        from raydapt.models.diffusion import pipeline_identity  # diffusers takes seconds to import

        inputs.append(pipeline_identity(config.synthesis.pipeline))
    captions = _captions(config, source, classes, features)
    inputs += [recipe.fingerprint for recipe in captions]
    digest = fingerprint("run", _what_matters(config), inputs)
    named = run_name(config.method, config.data.source, config.data.paradigm, config.seed, digest)
    return Plan(
        config=config,
        source=source,
        classes=classes,
        image_spec=clip.image_spec,
        clip_identity=clip.identity,
        features=features,
        pixels=pixels,
        crops=crops,
        stored_spec=stored_spec,
        partial_labels=_partial_labels(config, classes, features, voters),
        captions=captions,
        fingerprint=digest,
        run_name=named if config.name == "auto" else config.name,
    )


def describe_plan(plan: Plan, further_stages: Sequence[str] = ()) -> str:
    """The plan in words: inputs, stages, what is already there; with lines about the stages after the usual ones."""
    config, source = plan.config, plan.source
    record = Run(config.runs, plan.run_name)
    rows = "an unknown number of" if source.rows is None else f"{source.rows:,}"
    names = ", ".join(plan.classes.names[:5]) + (", …" if len(plan.classes.names) > 5 else "")
    what = f"two {config.coreg.student} students" if config.method == "coreg" else f"{config.model.prompt} prompt"
    what = latteclip_learns(config.latteclip) if config.method == "latteclip" else what
    learned = f"{what}, {config.train.epochs} epochs a round" if _learns(config) else "nothing"
    where = f"{config.train.workers} Ray Train workers" if config.train.workers else "this process"
    lines = [
        f"run       {record.path}{' (finished)' if record.exists('metrics.json') else ''}",
        f"images    {source.uri} ({source.kind}, {rows} images, {len(source.parts)} parts)",
        f"classes   {len(plan.classes.names)}: {names}",
        f"prompt    {plan.classes.templates[0]!r} and {len(plan.classes.templates) - 1} more",
        f"model     {config.model.clip} ({plan.image_spec.size_px} px)",
        f"method    {config.method}, {config.data.paradigm}, seed {config.seed}",
        f"stage     features {plan.features.fingerprint}: {_presence(plan.store.artefact_of(plan.features), source)}",
    ]
    for recipe in (plan.pixels, plan.crops, plan.partial_labels, *plan.captions):
        if recipe is not None:
            presence = _presence(plan.store.artefact_of(recipe), source)
            lines.append(f"stage     {recipe.kind} {recipe.fingerprint}: {presence}")
    lines += [f"stage     {line}" for line in further_stages]
    lines.append(f"train     {learned}{f', in {where}' if _learns(config) else ''}")
    lines.append("then      predictions.parquet, metrics.json, report.html")
    return "\n".join(lines)


def rows_of_splits(data: DataSettings, table: FeatureTable) -> tuple[Tensor, Tensor, bool]:
    """Which rows of the features are adapted to, and which are evaluated on.

    Returns:
        int64 training rows, int64 test rows, and whether they are the same images (transductive): so it is where the
        source has no splits at all, or none of the test splits.

    Raises:
        UserError: If there is no image to adapt to.
    """
    found = sorted({split for split in table.split_N if split is not None})
    if not found:
        row_N = table.valid_N.nonzero().flatten()
        return _some(row_N, data, found), row_N, True
    row_N = _rows(table, lambda split: split in data.train_splits)
    row_T = _rows(table, lambda split: split in data.test_splits)
    _some(row_N, data, found)
    return (row_N, row_T, False) if len(row_T) else (row_N, row_N, True)


def _rows(table: FeatureTable, wanted: Callable[[str | None], bool]) -> Tensor:
    chosen_N = torch.tensor([wanted(split) for split in table.split_N], dtype=torch.bool)
    return (chosen_N & table.valid_N).nonzero().flatten()


def _some(row_N: Tensor, data: DataSettings, found: list[str]) -> Tensor:
    if not len(row_N):
        there = f"the source has the splits {', '.join(found)}" if found else "no image of the source could be read"
        raise UserError(f"Setting data.train_splits={data.train_splits} leaves no image to adapt to: {there}.")
    return row_N


def _resolve(config: Config, classes: ClassSpace, image_spec: ImageSpec) -> Config:
    if config.method == "air" and config.air.synthetic_only and not config.air.synthetic_weight:
        raise UserError("Settings air.synthetic_only=true and air.synthetic_weight=0 leave nothing to learn from.")
    if config.method == "latteclip":
        check_latteclip(config)
    data = replace(config.data, class_names=list(classes.names), templates=list(classes.templates))
    fair = resolve_fair(config, classes, image_spec) if config.method in FAIR_METHODS else config.fair
    config = replace(config, data=data, cpl=_resolve_cpl(config, len(classes.names)), fair=fair)
    return replace(config, coreg=resolve_coreg(config)) if config.method == "coreg" else config


def _reads(config: Config) -> Reads:
    """What the method takes for an image."""
    if config.method in FAIR_METHODS:
        return reads_of(config.fair if config.method == "fair" else replace(config.fair, layer_norms=False))
    if config.method == "coreg":
        return "pixels"
    if config.method == "latteclip":
        return latteclip_reads_of(config.latteclip)
    return "pixels" if config.method in LEARNING_METHODS and config.model.prompt != "text" else "features"


def _stored_spec(config: Config, image_spec: ImageSpec) -> ImageSpec:
    if config.method == "coreg":
        return replace(image_spec, size_px=config.coreg.image_size_px)
    size = config.fair.image_px if config.method in FAIR_METHODS else "auto"
    return image_spec if size == "auto" else replace(image_spec, size_px=size)


def _resolve_cpl(config: Config, n_classes: int) -> CplSettings:
    """CPL's published thresholds of the named set, else those that most of its sets share.

    In TRZSL beta = 1 - m / C over the C unseen classes, in the form of the authors' newer guidance.
    """
    cpl, modality = config.cpl, "text" if config.model.prompt == "text" else "visual"
    known = named_set(config.data.source)
    thresholds = (known.thresholds.get(modality) if known else None) or default_thresholds(n_classes)
    alpha = thresholds.alpha if cpl.alpha == "auto" else cpl.alpha
    if cpl.beta != "auto":
        beta = cpl.beta
    elif config.data.paradigm == "trzsl":
        _, unseen = seen_unseen_classes(n_classes, config.data.split_seed, config.data.seen_share)
        beta = max(0.0, 1.0 - thresholds.trzsl_m / len(unseen))
    else:
        beta = thresholds.beta
    return replace(cpl, alpha=alpha, beta=beta)


def prompt_of(config: Config) -> str | None:
    """The kind of prompt that a run learns; None when it learns none."""
    if config.method == "latteclip":
        return config.latteclip.tune.removesuffix("_prompt") if config.latteclip.tune.endswith("_prompt") else None
    return config.model.prompt if _learns(config) and config.method != "coreg" else None


def _captions(config: Config, source: Source, classes: ClassSpace, features: Recipe) -> tuple[Recipe, ...]:
    kinds = caption_kinds(config)
    if not kinds:
        return ()
    from raydapt.stages.captioning import caption_jobs  # which needs plans

    jobs = caption_jobs(config, source, classes, features)
    return tuple(jobs[kind].recipe for kind in kinds)


def _partial_labels(config: Config, classes: ClassSpace, features: Recipe, voters: tuple[str, ...]) -> Recipe | None:
    if config.method != "coreg":
        return None
    return partial_labels_recipe(features, classes.names, config.coreg, voters)


def _learns(config: Config) -> bool:
    return config.method in LEARNING_METHODS


def _reads_synthetic(config: Config) -> bool:
    return config.method == "air" and has_a_part(config.air)


def _what_matters(config: Config) -> dict[str, Any]:
    tree = as_tree(config)
    matters = {"method": config.method, "seed": config.seed, "data": tree["data"], "model": tree["model"]}
    del matters["data"]["max_error_share"]
    if _learns(config):
        matters["train"] = {key: value for key, value in tree["train"].items() if key not in _RESOURCES}
        matters[config.method] = tree[config.method]
    if config.method == "coreg":
        # Not where voters lie matters, but what they know, which is among the inputs.
        matters["coreg"] = {k: v for k, v in tree["coreg"].items() if k not in ("voters", "gpu_per_student")}
    if config.method in FAIR_METHODS:
        matters["fair"] = tree["fair"]
    if config.method == "air":
        matters[config.air.base] = tree[config.air.base]
    if _reads_synthetic(config) or config.synthesis.held_out:
        matters |= _what_matters_of_synthesis(tree)
    return matters


def _what_matters_of_synthesis(tree: dict[str, Any]) -> dict[str, Any]:
    left_out = _STAGE_RESOURCES if tree["synthesis"]["held_out"] else (*_STAGE_RESOURCES, "held_out")
    return {"lora": tree["lora"], "synthesis": {k: v for k, v in tree["synthesis"].items() if k not in left_out}}


def _presence(artefact: Artefact, source: Source) -> str:
    if artefact.complete():
        return f"there ({artefact.manifest.rows:,} rows)"
    there = len(artefact.committed_parts() & {part.index for part in source.parts})
    return f"{there} of {len(source.parts)} parts there" if there else "to be made"
