"""Partial labels of a source as an artefact: pure arithmetic on cached features, so no Ray is needed.

Legend: N images, M of one part, R templates, C classes, D width of the shared space.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from raydapt.artefacts.partial_labels import PartialLabels, partial_labels_table
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.methods.coreg.partial_labels import annotate, annotate_votes
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.models.clip import Clip
from raydapt.models.frozen import load_frozen
from raydapt.stages.place import StagePlace
from raydapt.store.artefact import Artefact, StageResult, Store
from raydapt.store.environment import versions
from raydapt.store.fingerprint import Recipe

Annotator = Callable[[int, Tensor], PartialLabels]
"""Annotates one part, given its first row among the features and its features [M, D]; parts come in order."""


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
        annotate_part = annotator()
        there, computed, candidates, start = artefact.committed_parts(), 0, 0, 0
        parts = [shard.part for shard in features.manifest.shards]
        for part, table in zip(parts, features.iter_tables(["id", "feature"]), strict=True):
            if part not in there:
                annotated, n_candidates = _annotate(table, start, annotate_part)
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

    def annotate_part(_: int, feature_MD: Tensor) -> PartialLabels:
        mode, topk, ratio = settings.annotation, settings.topk, settings.prob_ratio
        return annotate(feature_MD, class_RCD, clip.logit_scale, mode=mode, topk=topk, ratio=ratio)

    return annotate_part


def answer_annotator(answers: Sequence[Artefact], settings: CoregSettings) -> Annotator:
    """Finished runs vote in place of the templates (ours): each counts as one template does.

    Their parts are those of the features, and one of them is held at a time.
    """
    parts, reached = zip(*(artefact.iter_tables(["probability"]) for artefact in answers), strict=True), 0

    def annotate_part(start: int, feature_MD: Tensor) -> PartialLabels:
        nonlocal reached
        mode, topk, ratio = settings.annotation, settings.topk, settings.prob_ratio
        for tables in parts:
            first, reached = reached, reached + tables[0].num_rows
            if (first, tables[0].num_rows) == (start, len(feature_MD)):
                probability_RMC = torch.stack([_probabilities(table) for table in tables])
                return annotate_votes(probability_RMC, mode=mode, topk=topk, ratio=ratio)
        raise RuntimeError(f"{answers} have no part that begins at row {start} with {len(feature_MD)} rows")

    return annotate_part


def _probabilities(table: pa.Table) -> Tensor:
    """The answers of a run for one part, float32 [M, C]."""
    column = table["probability"].combine_chunks()
    return torch.from_numpy(column.flatten().to_numpy().reshape(-1, column.type.list_size).copy())


def _annotate(table: pa.Table, start: int, annotate_part: Annotator) -> tuple[pa.Table, int]:
    """Annotates one part, whose first row is `start`; returns its rows and the number of its candidates."""
    column = table["feature"].combine_chunks()
    valid_M = column.is_valid().to_numpy(zero_copy_only=False)
    feature_MD = torch.zeros(len(valid_M), column.type.list_size)
    feature_MD[torch.from_numpy(valid_M.copy())] = torch.from_numpy(
        column.flatten().to_numpy().reshape(-1, column.type.list_size).copy()
    )
    labels = annotate_part(start, feature_MD).only(torch.from_numpy(valid_M.copy()))
    return partial_labels_table(table["id"], labels), labels.candidate_NC.nnz
