"""From images to captions: which model is asked what about which image; for the verb ``caption`` and for ``latteclip``.

    features of the frozen CLIP -> zero-shot classes -> prompts and groups -> captions

Features are needed only where groups are described, or where a prompt names the class.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, caption_recipes, checked_prompts
from raydapt.artefacts.features import load_features
from raydapt.data.classes import ClassSpace
from raydapt.data.groups import draw_groups
from raydapt.data.sources import Source, resolve_source
from raydapt.models.clip import load_clip
from raydapt.models.language import engine_address
from raydapt.run.plan import Plan, make_plan, rows_of_splits
from raydapt.settings.config import Config
from raydapt.stages.artefacts import make_features
from raydapt.stages.caption import CaptionJob, KnownRows, caption_stage
from raydapt.store.artefact import Artefact, StageResult, Store
from raydapt.store.fingerprint import Recipe


def caption(config: Config, *, groups: bool = False, output: str | None = None) -> list[str]:
    """Describes every image of a source, and with `groups` a group for every image.

    Args:
        config: The settings; the classes matter only for groups and for prompts with ``{}``.
        groups: Also describe groups of the same zero-shot class.
        output: Folder that gets ``image_captions.parquet`` and ``group_captions.parquet``; None leaves the captions in
            the store.

    Returns:
        The folders of the artefacts, or the files in `output`.
    """
    if groups or "{}" in checked_prompts(config.caption, config.data)[0]:
        plan = make_plan(config)
        made = make_captions(plan, make_features(plan).artefact, all_splits=True, groups=groups)
    else:
        source = resolve_source(
            config.data.source, rows_per_part=config.features.rows_per_part, limit=config.data.limit
        )
        job = caption_jobs(config, source)[IMAGE_CAPTIONS]
        result = caption_stage(job, known=None, ray_settings=config.ray, store=Store(config.store))
        made = {IMAGE_CAPTIONS: result}
    if output is None:
        return [result.artefact.folder.path for result in made.values()]
    return [_write(result.artefact, kind, output) for kind, result in made.items()]


def make_captions(
    plan: Plan, features: Artefact, *, all_splits: bool = False, groups: bool = True
) -> dict[str, StageResult]:
    """The captions that a plan's images have, made or found, by kind: `IMAGE_CAPTIONS` and `GROUP_CAPTIONS`.

    Args:
        plan: The run.
        features: The features of its source.
        all_splits: Describe all images; without, those that are adapted to alone (the others' rows have no caption).
        groups: Whether groups are described as well.
    """
    jobs = caption_jobs(plan.config, plan.source, plan.classes, plan.features, all_splits=all_splits)
    if not groups:
        del jobs[GROUP_CAPTIONS]
    known: KnownRows | None = None
    made = {}
    for kind, job in jobs.items():
        if known is None and not plan.store.artefact_of(job.recipe).complete():
            known = _known_rows(plan, features, all_splits=all_splits)
        made[kind] = caption_stage(job, known=known, ray_settings=plan.config.ray, store=plan.store)
    return made


def caption_jobs(
    config: Config,
    source: Source,
    classes: ClassSpace | None = None,
    features: Recipe | None = None,
    *,
    all_splits: bool = False,
) -> dict[str, CaptionJob]:
    """What is described, by kind, before anything is made (see `raydapt.artefacts.captions.caption_recipes`).

    Raises:
        UserError: For a model or a prompt that cannot work.
    """
    settings = config.caption
    recipes = caption_recipes(settings, config.data, source, classes, features, all_splits=all_splits)
    address = engine_address(settings, setting="caption")
    return {
        kind: CaptionJob(
            recipe=recipe,
            source=source,
            prompt=recipe.settings["prompt"],
            address=address,
            settings=settings,
            data=config.data,
        )
        for kind, recipe in recipes.items()
    }


def _known_rows(plan: Plan, features: Artefact, *, all_splits: bool) -> KnownRows:
    """Zero-shot classes under the first template, and the groups; labels are not looked at."""
    config, table = plan.config, load_features(features)
    clip = load_clip(config.model.clip)
    class_CD = clip.class_embeddings(plan.classes.names, plan.classes.templates[:1]).cpu()
    wanted_N = table.valid_N.clone()
    if not all_splits:
        row_N, _, _ = rows_of_splits(config.data, table)
        wanted_N = torch.zeros_like(wanted_N).index_fill_(0, row_N, True)
    class_N = (table.feature_ND @ class_CD.T).argmax(dim=1).masked_fill_(~wanted_N, -1).numpy()
    sizes = [shard.rows for shard in features.manifest.shards]
    return KnownRows(
        first_row_of=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        class_N=class_N,
        row_N=table.row_N.numpy(),
        id_N=table.id_N,
        path_N=table.path_N,
        error_N=table.error_N,
        wanted_N=wanted_N.numpy(),
        group_N4=draw_groups(class_N, table.id_N, config.caption.seed),
        class_names=plan.classes.names,
    )


def _write(artefact: Artefact, kind: str, output: str) -> str:
    """Copies the captions into one file of a folder."""
    folder = Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}.parquet"
    pq.write_table(artefact.read(), file)
    return str(file)
