"""Partial labels: a set of possible classes for every image. What they depend on, and how they are read.

Legend: N images, M some of them, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "partial_labels"
Annotation = Literal["prompts", "topk", "prob_ratio", "mean"]


@dataclass(frozen=True, kw_only=True)
class PartialLabels:
    """What the annotation says of N images."""

    candidate_NC: Tensor
    """float32: 1 for a candidate, 0 for the others; of `mean` the probabilities themselves."""
    probability_NC: Tensor
    """float32: mean over the templates of the softmax."""

    def rows(self, row_M: Tensor) -> "PartialLabels":
        """The partial labels of some images."""
        return PartialLabels(candidate_NC=self.candidate_NC[row_M], probability_NC=self.probability_NC[row_M])


def partial_labels_recipe(
    features: Recipe,
    class_names: Sequence[str],
    *,
    annotation: Annotation,
    topk: int,
    prob_ratio: float,
    templates: Sequence[str],
    voters: Sequence[str] = (),
) -> Recipe:
    """What partial labels depend on: the features, the names, the wordings and the rule.

    Args:
        features: Of the images.
        class_names: The classes.
        annotation: The rule, see `raydapt.methods.coreg.partial_labels.annotate`.
        topk: Candidates of an image, of rule `topk` alone.
        prob_ratio: Least share of the largest probability, of rule `prob_ratio` alone.
        templates: The wordings that vote.
        voters: Digests of the runs that vote in place of the templates.
    """
    own: dict[str, dict[str, Any]] = {"topk": {"topk": topk}, "prob_ratio": {"prob_ratio": prob_ratio}}
    rule = {"annotation": annotation} | own.get(annotation, {})
    words = {"class_names": list(class_names)} | ({} if voters else {"templates": list(templates)})
    inputs = (features.fingerprint, *voters)
    return Recipe(kind=KIND, settings=rule | words, inputs=inputs, weights=features.weights)


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
