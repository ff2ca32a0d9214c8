"""Partial labels: a set of possible classes for every image. What they depend on, and how they are read.

Legend: N images, M some of them, C classes, E candidates of all images together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import csr_array
from torch import Tensor

from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "partial_labels"
Annotation = Literal["prompts", "topk", "prob_ratio", "mean"]


@dataclass(frozen=True, kw_only=True)
class PartialLabels:
    """What the annotation says of N images: of each the few classes that it names."""

    candidate_NC: csr_array
    """float32, sparse: 1 for a candidate; of `mean` the probability itself."""
    likeliest_N: Tensor
    """int64: class of the highest mean over the templates of the softmax; -1 of an image in error."""

    @classmethod
    def of_block(cls, candidate_MC: Tensor, probability_MC: Tensor) -> "PartialLabels":
        """The partial labels of a block of images, which is small enough to be a matrix.

        Args:
            candidate_MC: float32 weights of the candidates, 0 for the other classes.
            probability_MC: float32 mean over the templates of the softmax.
        """
        return cls(candidate_NC=csr_array(candidate_MC.numpy()), likeliest_N=probability_MC.argmax(1))

    def rows(self, row_M: Tensor) -> "PartialLabels":
        """The partial labels of some images."""
        return PartialLabels(candidate_NC=self.candidate_NC[row_M.numpy()], likeliest_N=self.likeliest_N[row_M])

    def only(self, valid_N: Tensor) -> "PartialLabels":
        """The same without a word on the images that are not valid."""
        kept_NC = csr_array(self.candidate_NC.multiply(valid_N.numpy()[:, None]))
        kept_NC.eliminate_zeros()
        return PartialLabels(candidate_NC=kept_NC, likeliest_N=self.likeliest_N.masked_fill(~valid_N, -1))


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


def partial_labels_table(ids: pa.ChunkedArray, labels: PartialLabels) -> pa.Table:
    """The rows of one part: the candidates of each image, their weights, and its likeliest class."""
    candidate_NC = labels.candidate_NC
    offset, class_E = (pa.array(index.astype(np.int32)) for index in (candidate_NC.indptr, candidate_NC.indices))
    weight_E = pa.array(candidate_NC.data.astype(np.float32))
    columns = {
        "candidates": pa.ListArray.from_arrays(offset, class_E),
        "weight": pa.ListArray.from_arrays(offset, weight_E),
        "likeliest": pa.array(labels.likeliest_N.numpy().astype(np.int32)),
    }
    return pa.table({"id": ids, **columns})


def load_partial_labels(artefact: Artefact) -> PartialLabels:
    """The partial labels in the order of the features, read part by part; an image in error has no candidate."""
    manifest = artefact.manifest
    shape, soft = (manifest.rows, len(manifest.settings["class_names"])), manifest.settings["annotation"] == "mean"
    parts = [
        _labels_of(table, shape[1], soft=soft)
        for table in artefact.iter_tables(["candidates"], optional=["weight", "likeliest", "probability"])
    ]
    size_N = np.concatenate([np.diff(part.candidate_NC.indptr) for part in parts])
    class_E, weight_E = (np.concatenate([getattr(p.candidate_NC, name) for p in parts]) for name in ("indices", "data"))
    offset = np.concatenate([[0], np.cumsum(size_N)])
    return PartialLabels(
        candidate_NC=csr_array((weight_E, class_E, offset), shape=shape),
        likeliest_N=torch.cat([part.likeliest_N for part in parts]),
    )


def _labels_of(table: pa.Table, n_classes: int, *, soft: bool) -> PartialLabels:
    """One part; an earlier release's has the probabilities of all classes in place of weights and likeliest class."""
    column = table["candidates"].combine_chunks()
    offset, class_E = column.offsets.to_numpy(), column.values.to_numpy()
    if "likeliest" in table.column_names:
        weight_E = table["weight"].combine_chunks().values.to_numpy()
        likeliest_N = table["likeliest"].to_numpy().astype(np.int64)
    else:
        flat = table["probability"].combine_chunks().flatten().to_numpy()
        probability_NC = flat.reshape(-1, n_classes)
        row_E = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
        weight_E = probability_NC[row_E, class_E] if soft else np.ones(len(class_E), np.float32)
        likeliest_N = np.where(probability_NC.any(1), probability_NC.argmax(1), -1)
    candidate_NC = csr_array((weight_E, class_E, offset), shape=(len(offset) - 1, n_classes))
    return PartialLabels(candidate_NC=candidate_NC, likeliest_N=torch.from_numpy(likeliest_N))
