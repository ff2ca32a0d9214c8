"""The labels of a run's images as they are now, what they mean, and what a person must be told of them.

Labels are for measuring, and for the labelled part of SSL and TRZSL; nothing else may ask here.

Legend: N rows of the features artefact.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from raydapt.artefacts.features import FeatureTable, load_labels
from raydapt.data.labels import LabelFindings, examine, find_classes, refusal, without_other
from raydapt.data.nameless import say_nameless
from raydapt.data.splits import unused_splits
from raydapt.run.plan import Plan
from raydapt.store.artefact import Artefact


@dataclass(frozen=True, kw_only=True)
class KnownLabels:
    """The labels of all images of a source."""

    plan: Plan
    label_N: list[str | None]
    """As the source has them."""
    class_N: Tensor
    """int64; -1 for no label and for one that is no class."""
    other_N: Tensor
    """Whether the label is one of ``data.other_labels``: the image belongs to none of the names."""

    def among(self, rows: Tensor) -> LabelFindings:
        """What is to be said of the labels of some images."""
        labels = without_other((self.label_N[row] for row in rows.tolist()), self.plan.config.data.other_labels)
        counts = Counter(label for label in labels if label is not None)
        return examine(self.plan.classes, counts)

    def measured(self, rows: Tensor) -> tuple[Tensor, list[str]]:
        """The classes of some images that may be measured with, and the sentences that belong beside the figures.

        Where too many labels are no class (`data.max_error_share`), no label counts: an accuracy over the others would
        be no accuracy of the images.
        """
        found, limit = self.among(rows), self.plan.config.data.max_error_share
        class_M = self.class_N[rows]
        if found.measurable(limit):
            return class_M, [found.sentence] if found.sentence else []
        return torch.full_like(class_M, -1), [refusal(found, limit)]

    def taught(self, rows: Tensor) -> Tensor:
        """The classes of images whose labels a method is given.

        Raises:
            UserError: If too many of their labels are no class.
        """
        self.among(rows).require_measurable(self.plan.config.data.max_error_share)
        return self.class_N[rows]


def read_known_labels(plan: Plan, features: Artefact) -> KnownLabels:
    """Reads the labels of a plan's images, anew where they may have been corrected.

    Raises:
        UserError: If they are numbers of which nobody said where they start.
    """
    labels = load_labels(features, plan.source)
    named = without_other(labels, plan.config.data.other_labels)
    class_N, _ = find_classes(plan.classes, named)
    other_N = torch.tensor([a is not None and b is None for a, b in zip(labels, named, strict=True)], dtype=torch.bool)
    return KnownLabels(plan=plan, label_N=labels, class_N=torch.from_numpy(class_N), other_N=other_N)


def notes_of(plan: Plan, table: FeatureTable) -> list[str]:
    """What a person must know of the images before any figure: what was left out, and which splits are not used."""
    data = plan.config.data
    counts = Counter(split for split in table.split_N if split is not None)
    unused = unused_splits(counts, data.train_splits, data.test_splits)
    return [*plan.source.notes, *([unused] if unused else []), *say_nameless(plan.classes.names)]
