"""Which training images are labelled: nothing (UL), a few per class (SSL), or the seen classes (TRZSL).

Legend: N training images, L labelled, U unlabelled, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from raydapt.data.named_sets import Protocol
from raydapt.errors import UserError

Paradigm = Literal["ul", "ssl", "trzsl"]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LabelSplit:
    """The training images of one run, divided."""

    labelled_L: Indices
    """Indices into the training images whose labels a method is given, ascending."""
    unlabelled_U: Indices
    """Indices into the training images that a method sees without labels, ascending."""
    candidate_classes: tuple[int, ...]
    """The classes that pseudo-labels may use, ascending."""
    seen: tuple[int, ...] = ()
    """TRZSL: the classes with labels, in the order in which they were drawn."""
    unseen: tuple[int, ...] = ()
    """TRZSL: the other classes, ascending."""


def unused_splits(counts: Mapping[str, int], train: Sequence[str], test: Sequence[str]) -> str:
    """A sentence for splits of the source that are neither learned from nor measured on; empty for none.

    Args:
        counts: Images of each split.
        train: ``data.train_splits``.
        test: ``data.test_splits``.
    """
    unused = {split: images for split, images in sorted(counts.items()) if split not in (*train, *test)}
    if not unused:
        return ""
    named = ", ".join(f"{split!r} ({images:,} images)" for split, images in unused.items())
    return f"Not used, as neither data.train_splits={list(train)} nor data.test_splits={list(test)} names it: {named}."


def seen_unseen_classes(n_classes: int, seed: int, seen_share: float = 0.62) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Divides the classes as the published TRZSL splits do.

    ``numpy.random.seed(seed); choice(range(C), int(0.62 * C), replace=False)`` with NumPy's legacy generator is what
    GRIP published; with classes in its order, seeds 500, 0 and 200 give its lists.

    Returns:
        The seen classes in the order drawn, and the unseen classes ascending.

    Raises:
        UserError: If no class would be seen, or none unseen.
    """
    n_seen = int(seen_share * n_classes)
    if not 0 < n_seen < n_classes:
        raise UserError(
            f"data.seen_share={seen_share} of {n_classes} classes leaves {n_seen} seen and {n_classes - n_seen} "
            "unseen: TRZSL needs at least one of each."
        )
    legacy = np.random.RandomState(seed)  # the published splits come from the legacy generator
    seen = tuple(int(c) for c in legacy.choice(n_classes, n_seen, replace=False))
    return seen, tuple(sorted(set(range(n_classes)) - set(seen)))


def divide(
    paradigm: Paradigm,
    class_index_N: Indices | None,
    n_classes: int,
    *,
    shots: int = 2,
    seed: int = 0,
    split_seed: int = 500,
    seen_share: float = 0.62,
    n_images: int | None = None,
) -> LabelSplit:
    """Divides the training images.

    Args:
        paradigm: ``ul``: labels are not even looked at. ``ssl``: `shots` images per class, drawn with `seed`, are
            labelled. ``trzsl``: all images of the seen classes are labelled; the others are unlabelled, and
            pseudo-labels are over the unseen classes alone.
        class_index_N: int64 class of each training image, -1 where it is not known; may be None in UL.
        n_classes: Number of classes.
        shots: Labelled images per class in SSL; a class with fewer gives all that it has.
        seed: Seed of the SSL draw.
        split_seed: Seed of the TRZSL division.
        seen_share: Share of the classes that is seen.
        n_images: Number of training images, needed when `class_index_N` is None.

    Raises:
        UserError: If the paradigm needs labels that are not there.
    """
    if paradigm == "ul":
        n_images = len(class_index_N) if class_index_N is not None else n_images
        if n_images is None:
            raise ValueError("The number of training images is not known.")
        return LabelSplit(
            labelled_L=np.empty(0, np.int64),
            unlabelled_U=np.arange(n_images),
            candidate_classes=tuple(range(n_classes)),
        )
    if class_index_N is None or not bool((class_index_N >= 0).any()):
        raise UserError(
            f"data.paradigm={paradigm} needs labelled training images, but none has a known label: "
            "use data.paradigm=ul or a source with labels."
        )
    if paradigm == "ssl":
        return _divide_ssl(class_index_N, n_classes, shots, seed)
    seen, unseen = seen_unseen_classes(n_classes, split_seed, seen_share)
    is_seen_N = np.isin(class_index_N, np.array(seen))
    if not is_seen_N.any():
        raise UserError(
            f"data.paradigm=trzsl with data.split_seed={split_seed}: no training image belongs to a seen class; "
            "take another seed, or data.paradigm=ul."
        )
    return LabelSplit(
        labelled_L=np.flatnonzero(is_seen_N),
        unlabelled_U=np.flatnonzero(~is_seen_N),
        candidate_classes=unseen,
        seen=seen,
        unseen=unseen,
    )


def _divide_ssl(class_index_N: Indices, n_classes: int, shots: int, seed: int) -> LabelSplit:
    generator = np.random.default_rng(seed)
    drawn = []
    for c in range(n_classes):
        member = np.flatnonzero(class_index_N == c)
        if len(member) == 0:
            raise UserError(
                f"data.paradigm=ssl needs labelled images of every class, but class number {c} (from 0) has none in "
                "the training splits: drop the class, or use data.paradigm=ul."
            )
        drawn.append(generator.choice(member, min(shots, len(member)), replace=False))
    labelled_L = np.sort(np.concatenate(drawn))
    return LabelSplit(
        labelled_L=labelled_L,
        unlabelled_U=np.setdiff1d(np.arange(len(class_index_N)), labelled_L),
        candidate_classes=tuple(range(n_classes)),
    )


def adapted_splits(train_splits: Sequence[str], protocol: Protocol) -> list[str]:
    """The splits that are adapted to: those of the settings, with LatteCLIP's protocol ``val`` beside ``train``."""
    return ["train", "val"] if protocol == "latteclip" and list(train_splits) == ["train"] else list(train_splits)
