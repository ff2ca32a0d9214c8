"""Accuracies, for reading only: nothing here ever reaches adaptation.

N images, C classes, M selected (pseudo-labelled) images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raydapt.methods.targets import Targets, sparse

UNKNOWN = -1
"""The class index of an image whose label nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """What one classifier reached, in percent (0-100); None where there are no labels to say it.

    Attributes:
        images: Labelled images that were counted.
        top1: Share of all labelled images that are right (micro accuracy).
        mean_per_class: Mean of the classes' recalls, over the classes that have images.
        per_class: Recall of each class; None for a class without images; empty without labels.
        seen: TRZSL: micro accuracy on images of seen classes, predicted among ALL classes.
        unseen: TRZSL: the same on images of unseen classes.
        harmonic_mean: TRZSL: harmonic mean of `seen` and `unseen`.
        confusion_CC: int64 counts, row = true class, column = predicted class; None without labels.
    """

    images: int = 0
    top1: float | None = None
    mean_per_class: float | None = None
    per_class: tuple[float | None, ...] = ()
    seen: float | None = None
    unseen: float | None = None
    harmonic_mean: float | None = None
    confusion_CC: Tensor | None = None

    def as_dict(self) -> dict[str, float | None]:
        """The part of ``metrics.json``: top1, mean_per_class and, where given, the TRZSL figures."""
        figures = {"top1": self.top1, "mean_per_class": self.mean_per_class}
        if self.seen is not None or self.unseen is not None:
            figures |= {"seen": self.seen, "unseen": self.unseen, "harmonic_mean": self.harmonic_mean}
        return figures


def evaluate(
    predicted_N: ArrayLike | Tensor,
    class_N: ArrayLike | Tensor | None,
    n_classes: int,
    seen: Sequence[int] | None = None,
    unseen: Sequence[int] | None = None,
) -> Accuracies:
    """Compares predictions with labels; images of unknown class are left out.

    Args:
        predicted_N: Predicted class indices, among all classes.
        class_N: True class indices, -1 where unknown; None where nothing is labelled.
        n_classes: C.
        seen: TRZSL: the classes whose labels were seen in training.
        unseen: TRZSL: the other classes.
    """
    if class_N is None:
        return Accuracies()
    true_N = torch.as_tensor(class_N).long()
    known_N = true_N != UNKNOWN
    if not bool(known_N.any()):
        return Accuracies()
    guess_N = torch.as_tensor(predicted_N).long()[known_N]
    pair_N = true_N[known_N].cpu() * n_classes + guess_N.cpu()  # the index of a cell of the matrix, row by row
    confusion_CC = torch.bincount(pair_N, minlength=n_classes * n_classes).reshape(n_classes, n_classes)
    images_C, right_C = confusion_CC.sum(dim=1), confusion_CC.diagonal()
    recall_C = 100.0 * right_C.double() / images_C
    seen_share, unseen_share = _micro(right_C, images_C, seen), _micro(right_C, images_C, unseen)
    return Accuracies(
        images=int(images_C.sum()),
        top1=_micro(right_C, images_C, range(n_classes)),
        mean_per_class=float(recall_C[images_C > 0].mean()),
        per_class=tuple(float(r) if n else None for r, n in zip(recall_C, images_C.tolist(), strict=True)),
        seen=seen_share,
        unseen=unseen_share,
        harmonic_mean=harmonic_mean(seen_share, unseen_share),
        confusion_CC=confusion_CC,
    )


def harmonic_mean(first: float | None, second: float | None) -> float | None:
    """``2ab / (a + b)``; 0 when both are 0, None when one is missing."""
    if first is None or second is None:
        return None
    return 2.0 * first * second / (first + second) if first + second > 0 else 0.0


def _micro(right_C: Tensor, images_C: Tensor, classes: Sequence[int] | None) -> float | None:
    """Percent right among the images of some classes; None without such images."""
    if classes is None:
        return None
    chosen = torch.as_tensor(list(classes), dtype=torch.long)
    images = int(images_C[chosen].sum())
    return 100.0 * int(right_C[chosen].sum()) / images if images else None


@dataclass(frozen=True, kw_only=True)
class PseudoLabelAccuracy:
    """How good a round's pseudo-labels are, in percent; None where no selected image has a label.

    Attributes:
        selected: Pseudo-labelled images, labelled ones or not (M).
        top1: Share whose heaviest class is the true one; k classes that tie for the heaviest count 1/k each.
        holds_truth: Share whose candidate set (weights above 0) holds the true class.
    """

    selected: int
    top1: float | None = None
    holds_truth: float | None = None


def pseudo_label_accuracy(
    index_M: ArrayLike | Tensor, target_MC: Targets, class_N: ArrayLike | Tensor | None
) -> PseudoLabelAccuracy:
    """Compares pseudo-labels with the labels that adaptation never saw.

    Args:
        index_M: Indices of the selected images among the N training images.
        target_MC: Their pseudo-labels: weights above 0 over the classes (one-hot, several-hot or soft), also sparse.
        class_N: True classes of the training images, -1 where unknown; None where nothing is labelled.
    """
    index = torch.as_tensor(index_M).long()
    if class_N is None or not len(index):
        return PseudoLabelAccuracy(selected=len(index))
    true_M = torch.as_tensor(class_N).long()[index]
    known_M = true_M != UNKNOWN
    if not bool(known_M.any()):
        return PseudoLabelAccuracy(selected=len(index))
    entries = sparse(target_MC).tocoo()
    (row_E, class_E), weight_E = (torch.from_numpy(i).long() for i in entries.coords), torch.from_numpy(entries.data)
    most_M = torch.zeros(len(index)).to(weight_E).scatter_reduce_(0, row_E, weight_E, "amax")
    heaviest_E, true_E = weight_E == most_M[row_E], class_E == true_M[row_E]
    ties_M = torch.bincount(row_E[heaviest_E], minlength=len(index))
    n_known = int(known_M.sum())
    return PseudoLabelAccuracy(
        selected=len(index),
        top1=100.0 * float((1.0 / ties_M[row_E[heaviest_E & true_E]].double()).sum()) / n_known,
        holds_truth=100.0 * int(true_E.sum()) / n_known,
    )
