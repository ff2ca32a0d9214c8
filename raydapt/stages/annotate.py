"""Partial labels of a source as an artefact: pure arithmetic on cached features, so no Ray is needed.

Legend: N images, R templates, C classes, D width of the shared space.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raydapt.artefacts.partial_labels import PartialLabels
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.methods.coreg.partial_labels import annotate, annotate_votes
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.models.clip import Clip
from raydapt.models.frozen import load_frozen
from raydapt.stages.place import StagePlace
from raydapt.store.artefact import Artefact, StageResult, Store
from raydapt.store.environment import versions
from raydapt.store.fingerprint import Recipe

Annotator = Callable[[Tensor, Tensor], PartialLabels]
"""Annotates images, given their rows [M] among the features and their features [M, D]."""


def make_partial_labels(place: StagePlace, spec: ArtefactSpec, made: Mapping[str, StageResult]) -> StageResult:
    """The partial labels of a run, made or found: templates vote, or the answers of teacher runs.

    Args:
        place: Where and with what.
        spec: The labels; `ArtefactSpec.job` holds the settings.
        made: With the features, and the answers where there are teachers.
    """
    assert spec.recipe is not None
    settings, names = spec.job, place.classes.names
    answers = [made[name].artefact for name in spec.depends_on if name in made and name != "features"]

    def annotator() -> Annotator:
        if answers:
            return answer_annotator(answers, settings)
        return template_annotator(load_frozen(place.config.data, place.config.model), names, settings)

    return partial_labels_stage(made["features"].artefact, spec.recipe, annotator, store=place.store)


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


def answer_annotator(answers: Sequence[Artefact], settings: CoregSettings) -> Annotator:
    """Finished runs vote in place of the templates (ours): each counts as one template does."""
    probability_RNC = torch.stack([_probabilities(artefact) for artefact in answers])

    def annotate_rows(row_M: Tensor, _: Tensor) -> PartialLabels:
        mode, topk, ratio = settings.annotation, settings.topk, settings.prob_ratio
        return annotate_votes(probability_RNC[:, row_M], mode=mode, topk=topk, ratio=ratio)

    return annotate_rows


def _probabilities(artefact: Artefact) -> Tensor:
    """The answers of a run, float32 [N, C], in the order of the features."""
    column = artefact.read(["probability"])["probability"].combine_chunks()
    return torch.from_numpy(column.flatten().to_numpy().reshape(-1, column.type.list_size).copy())


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
