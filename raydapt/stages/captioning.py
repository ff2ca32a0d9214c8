"""From images to captions: which model is asked what about which image; for the verb ``caption`` and for ``latteclip``.

    features of the frozen CLIP -> zero-shot classes -> prompts and groups -> captions

Features are needed only where groups are described, or where a prompt names the class.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from raydapt.data.caption_prompts import caption_prompts
from raydapt.data.classes import ClassSpace
from raydapt.data.groups import draw_groups
from raydapt.data.sources import Source, resolve_source
from raydapt.errors import UserError
from raydapt.models.clip import load_clip
from raydapt.models.language import who_answers
from raydapt.run.plan import Plan, make_plan, rows_of_splits
from raydapt.settings.config import Config
from raydapt.stages.artefacts import make_features
from raydapt.stages.caption import GROUP_CAPTIONS, IMAGE_CAPTIONS, CaptionJob, KnownRows, caption_stage
from raydapt.stages.features import load_features
from raydapt.stages.run import StageResult
from raydapt.store.artefact import Artefact, Store
from raydapt.store.fingerprint import Recipe

_MOST_CHARACTERS = 4000


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
    if groups or "{}" in _checked_prompts(config)[0]:
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
    """What is described, with the recipes of the captions, before anything is made; loads no model.

    Args:
        config: The settings.
        source: The images.
        classes: The classes; None for captions of images without regard to a class.
        features: The recipe of the features that the zero-shot classes come from, with `classes`.
        all_splits: See `make_captions`.

    Raises:
        UserError: For a model or a prompt that cannot work.
    """
    settings, (image_prompt, group_prompt) = config.caption, _checked_prompts(config)
    address, identity = who_answers(settings, setting="caption")
    limits = {"max_image_bytes": config.data.max_image_bytes, "max_image_pixels": config.data.max_image_pixels}
    shared: dict[str, Any] = limits | {"max_tokens": settings.max_tokens, "greedy": settings.greedy}
    shared |= {"image_px": settings.image_px, "max_model_len": settings.max_model_len}
    if classes is not None and not all_splits:
        shared["splits"] = [config.data.train_splits, config.data.test_splits]
    words = {} if classes is None else {"class_names": list(classes.names), "template": classes.templates[0]}
    canvas = {"canvas_px": settings.canvas_px, "gap_px": settings.gap_px, "seed": settings.seed}
    jobs = {}
    for kind, prompt, own in ((IMAGE_CAPTIONS, image_prompt, {}), (GROUP_CAPTIONS, group_prompt, canvas)):
        of_classes = kind == GROUP_CAPTIONS or "{}" in prompt
        if of_classes and (classes is None or features is None):
            continue
        by_class = of_classes or "splits" in shared  # which images there are to adapt to is known from the features
        recipe = Recipe(
            kind=kind,
            settings=shared | {"prompt": prompt} | own | (words if of_classes else {}),
            inputs=(features.fingerprint,) if features is not None and by_class else (source.identity,),
            weights=identity,
        )
        jobs[kind] = CaptionJob(
            recipe=recipe, source=source, prompt=prompt, address=address, settings=settings, data=config.data
        )
    return jobs


def _checked_prompts(config: Config) -> tuple[str, str]:
    """The prompts for images and groups, those of the set where the settings leave them open."""
    own_image, own_group = caption_prompts(config.data.source)
    settings = config.caption
    image = own_image if settings.image_prompt == "auto" else settings.image_prompt
    group = own_group if settings.group_prompt == "auto" else settings.group_prompt
    for name, prompt in (("image_prompt", image), ("group_prompt", group)):
        if not prompt.strip() or len(prompt) > _MOST_CHARACTERS or prompt.count("{}") > 1:
            raise UserError(
                f"Setting caption.{name}={prompt[:60]!r} must be a text of at most {_MOST_CHARACTERS} characters with "
                "at most one {}, the place of the class."
            )
    return image, group


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
