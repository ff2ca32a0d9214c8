"""From images to captions: which model is asked what about which image; for the verb ``caption`` and for ``latteclip``.

    features of the frozen CLIP -> zero-shot classes -> prompts and groups -> captions

Features are needed only where groups are described, or where a prompt names the class.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raydapt.artefacts.captions import GROUP_CAPTIONS, caption_recipes
from raydapt.artefacts.features import load_features, rows_of_splits
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.data.classes import ClassSpace
from raydapt.data.groups import draw_groups
from raydapt.data.sources import Source
from raydapt.methods.best_classes import best_classes
from raydapt.methods.class_prior import class_prior
from raydapt.methods.open_set import kept_rows
from raydapt.models.clip import load_clip
from raydapt.models.language import engine_address
from raydapt.settings.config import Config
from raydapt.stages.caption import CaptionJob, caption_stage
from raydapt.stages.caption_rows import KnownRows
from raydapt.stages.place import StagePlace
from raydapt.store.artefact import Artefact, StageResult
from raydapt.store.fingerprint import Recipe


def make_captions(place: StagePlace, spec: ArtefactSpec, made: Mapping[str, StageResult]) -> StageResult:
    """The captions of one kind that a run's images have, made or found.

    Args:
        place: Where and with what.
        spec: The captions; `ArtefactSpec.job` tells whether all splits are described, or those that are adapted to
            alone (the others' rows have no caption).
        made: With the features of the images.
    """
    assert spec.recipe is not None
    all_splits = bool(spec.job)
    jobs = caption_jobs(place.config, place.source, place.classes, place.features, all_splits=all_splits)
    known: KnownRows | None = None
    if not place.store.artefact_of(spec.recipe).complete():
        known = known_rows(place, made["features"].artefact, all_splits=all_splits, groups=spec.kind == GROUP_CAPTIONS)
    return caption_stage(jobs[spec.kind], known=known, ray_settings=place.config.ray, store=place.store)


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


def known_rows(place: StagePlace, features: Artefact, *, all_splits: bool, groups: bool) -> KnownRows:
    """Zero-shot classes under the first template, and the groups; labels are not looked at."""
    config, table = place.config, load_features(features, place.source)
    clip = load_clip(config.model.clip)
    class_CD = clip.class_embeddings(place.classes.names, place.classes.templates[:1]).cpu()
    wanted_N = table.valid_N.clone()
    if not all_splits:
        row_N, _, _ = rows_of_splits(config.data, table)
        if groups:
            row_N = kept_rows(config.data, table.feature_ND, row_N, class_CD)
        wanted_N = torch.zeros_like(wanted_N).index_fill_(0, row_N, True)
    log_prior_C = class_prior(config.data.class_prior, place.classes.names).log_prior()

    def scores(feature_BD: Tensor) -> Tensor:
        score_BC = feature_BD @ class_CD.T
        return score_BC if log_prior_C is None else clip.logit_scale * score_BC + log_prior_C

    class_N = best_classes(table.feature_ND, scores)[1].masked_fill_(~wanted_N, -1).numpy()
    rows_of = {shard.part: shard.rows for shard in features.manifest.shards}  # a part without rows has no shard
    sizes = [rows_of.get(part.index, 0) for part in place.source.parts]
    return KnownRows(
        first_row_of=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        class_N=class_N,
        row_N=table.row_N.numpy(),
        id_N=table.id_N,
        path_N=table.path_N,
        error_N=table.error_N,
        wanted_N=wanted_N.numpy(),
        group_N4=draw_groups(class_N, table.id_N, config.caption.seed),
        class_names=place.classes.names,
    )
