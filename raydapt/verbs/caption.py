"""The verb ``caption``: every image of a source described, and with groups every image's group."""

from pathlib import Path

import pyarrow.parquet as pq

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, checked_prompts
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.data.sources import resolve_source
from raydapt.run.making import make_all
from raydapt.run.plan import FEATURES, make_plan
from raydapt.settings.config import Config
from raydapt.stages.caption import caption_stage
from raydapt.stages.captioning import caption_jobs
from raydapt.store.artefact import Artefact, StageResult, Store


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
    made = captions(config, groups)
    if output is None:
        return [result.artefact.folder.path for result in made.values()]
    return [_write(result.artefact, kind, output) for kind, result in made.items()]


def captions(config: Config, groups: bool) -> dict[str, StageResult]:
    """The captions of images, and with `groups` those of groups, made or found; by kind."""
    if groups or "{}" in checked_prompts(config.caption, config.data)[0]:
        plan = make_plan(config)
        jobs = caption_jobs(plan.config, plan.source, plan.classes, plan.features, all_splits=True)
        wanted = [kind for kind in jobs if groups or kind != GROUP_CAPTIONS]
        specs = [ArtefactSpec(name=kind, kind=kind, recipe=jobs[kind].recipe, job=True) for kind in wanted]
        features = [spec for spec in plan.artefacts if spec.name == FEATURES]
        made = make_all(plan, [*features, *specs])
        del made[FEATURES]
        return made
    source = resolve_source(config.data.source, rows_per_part=config.features.rows_per_part, limit=config.data.limit)
    job = caption_jobs(config, source)[IMAGE_CAPTIONS]
    return {IMAGE_CAPTIONS: caption_stage(job, known=None, ray_settings=config.ray, store=Store(config.store))}


def _write(artefact: Artefact, kind: str, output: str) -> str:
    """Copies the captions into one file of a folder."""
    folder = Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}.parquet"
    pq.write_table(artefact.read(), file)
    return str(file)
