"""Partial labels of a source as an artefact: pure arithmetic on cached features, so no Ray is needed.

Legend: N images, R templates, C classes, D width of the shared space.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raydapt.methods.coreg.settings import CoregSettings
from raydapt.methods.partial_labels import PartialLabels, annotate
from raydapt.models.clip import Clip
from raydapt.stages.run import StageResult
from raydapt.store.artefact import Artefact, Store
from raydapt.store.environment import versions
from raydapt.store.fingerprint import Recipe

KIND = "partial_labels"

Annotator = Callable[[Tensor, Tensor], PartialLabels]
"""Annotates images, given their rows [M] among the features and their features [M, D]."""


def partial_labels_recipe(
    features: Recipe, class_names: Sequence[str], settings: CoregSettings, voters: Sequence[str] = ()
) -> Recipe:
    """What partial labels depend on: the features, the names, the wordings and the rule; templates are resolved.

    Args:
        features: Of the images.
        class_names: The classes.
        settings: The rule.
        voters: Digests of the runs that vote in place of the templates.
    """
    used = {"prompts": (), "topk": ("topk",), "prob_ratio": ("prob_ratio",), "mean": ()}[settings.annotation]
    rule = {"annotation": settings.annotation} | {name: getattr(settings, name) for name in used}
    words = {"class_names": list(class_names)} | ({} if voters else {"templates": list(settings.templates)})
    inputs = (features.fingerprint, *voters)
    return Recipe(kind=KIND, settings=rule | words, inputs=inputs, weights=features.weights)


def partial_labels_stage(
    features: Artefact, recipe: Recipe, annotator: Callable[[], Annotator], *, store: Store
) -> StageResult:
    """Annotates all images of finished features, or finds the annotation in the store.

    Args:
        features: Finished features.
        recipe: See `partial_labels_recipe`.
        annotator: Makes what annotates; called only where something is to be annotated.
        store: Where artefacts live.
    """
    artefact = store.artefact_of(recipe)
    if artefact.complete():
        return StageResult(artefact=artefact, reused=True)
    with artefact.lock():
        if artefact.complete():  # another process made it while this one waited for the lock
            return StageResult(artefact=artefact, reused=True)
        started = time.monotonic()
        annotate_rows = annotator()
        there, computed, candidates, start = artefact.committed_parts(), 0, 0.0, 0
        parts = [shard.part for shard in features.manifest.shards]
        for part, table in zip(parts, features.iter_tables(["id", "feature"]), strict=True):
            if part not in there:
                annotated, n_candidates = _annotate(table, start, annotate_rows)
                artefact.commit_part(part, annotated)
                computed, candidates = computed + table.num_rows, candidates + n_candidates
            start += table.num_rows
        rows, seconds = artefact.committed_rows(), time.monotonic() - started
        stats = {"seconds": round(seconds, 3), "rows": rows, "rows_per_s": round(computed / seconds, 3)}
        artefact.finish(recipe, parts, stats | {"candidates": candidates / max(1, computed)}, versions())
    return StageResult(artefact=artefact, reused=False)


def template_annotator(clip: Clip, class_names: Sequence[str], settings: CoregSettings) -> Annotator:
    """The templates of the settings vote, as published."""
    class_RCD = torch.stack([clip.class_embeddings(class_names, [template]) for template in settings.templates]).cpu()

    def annotate_rows(_: Tensor, feature_MD: Tensor) -> PartialLabels:
        mode, topk, ratio = settings.annotation, settings.topk, settings.prob_ratio
        return annotate(feature_MD, class_RCD, clip.logit_scale, mode=mode, topk=topk, ratio=ratio)

    return annotate_rows


def load_partial_labels(artefact: Artefact) -> PartialLabels:
    """The partial labels in the order of the features; an image in error has no candidate."""
    manifest = artefact.manifest
    n_classes, soft = len(manifest.settings["class_names"]), manifest.settings["annotation"] == "mean"
    candidate_NC, probability_NC = (torch.zeros(manifest.rows, n_classes) for _ in range(2))
    start = 0
    for table in artefact.iter_tables(["candidates", "probability"]):
        stop, column = start + table.num_rows, table["candidates"].combine_chunks()
        row_M = np.repeat(np.arange(start, stop), np.diff(column.offsets.to_numpy()))
        candidate_NC[torch.from_numpy(row_M), torch.from_numpy(column.values.to_numpy().astype(np.int64))] = 1.0
        probability = table["probability"].combine_chunks().flatten().to_numpy().copy()
        probability_NC[start:stop] = torch.from_numpy(probability).view(-1, n_classes)
        start = stop
    return PartialLabels(
        candidate_NC=candidate_NC * probability_NC if soft else candidate_NC, probability_NC=probability_NC
    )


def _annotate(table: pa.Table, start: int, annotator: Annotator) -> tuple[pa.Table, float]:
    """Annotates one part, whose first row is `start`; returns its rows and the number of its candidates."""
    column = table["feature"].combine_chunks()
    valid_N = column.is_valid().to_numpy(zero_copy_only=False)
    feature_ND = torch.zeros(len(valid_N), column.type.list_size)
    feature_ND[torch.from_numpy(valid_N.copy())] = torch.from_numpy(
        column.flatten().to_numpy().reshape(-1, column.type.list_size).copy()
    )
    labels = annotator(torch.arange(start, start + table.num_rows), feature_ND)
    is_candidate_NC = (labels.candidate_NC > 0).numpy() & valid_N[:, None]
    offset_N = np.concatenate([[0], is_candidate_NC.sum(1).cumsum()]).astype(np.int32)
    candidates = pa.ListArray.from_arrays(pa.array(offset_N), pa.array(np.nonzero(is_candidate_NC)[1].astype(np.int32)))
    flat = pa.array((labels.probability_NC.numpy() * valid_N[:, None]).astype(np.float32).reshape(-1))
    probability = pa.FixedSizeListArray.from_arrays(flat, is_candidate_NC.shape[1])
    annotated = pa.table({"id": table["id"], "candidates": candidates, "probability": probability})
    return annotated, float(is_candidate_NC.sum())
