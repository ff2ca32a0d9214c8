"""What the labels of a source mean among the classes of a run, and what must be said of those that mean none.

Legend: N images.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raydapt.data.classes import ClassSpace
from raydapt.data.spelling import nearest, normal
from raydapt.errors import UserError

_MOST_NAMED = 5
_MOST_COMPARED = 200
_GAPS = frozenset(("-1", "-1.0", "nan", "NaN", "<NA>"))
"""What lists and tables of text have where there is no label; a number column's are left out where it is read."""


@dataclass(frozen=True, kw_only=True)
class UnknownLabel:
    """A label that is no class."""

    label: str
    images: int
    nearest: str | None
    """The class label that is spelt most like it; None where nothing is."""


@dataclass(frozen=True, kw_only=True)
class LabelFindings:
    """What was found out about the labels of some images."""

    labelled: int
    """Images that have a label of any kind."""
    unknown: tuple[UnknownLabel, ...]
    """Labels that are no class, those with most images first."""

    @property
    def unknown_images(self) -> int:
        """Images with a label that is no class."""
        return sum(found.images for found in self.unknown)

    @property
    def sentence(self) -> str:
        """What a reader must know before believing an accuracy; empty where every label is a class."""
        if not self.unknown:
            return ""
        named = ", ".join(_named(found) for found in self.unknown[:_MOST_NAMED])
        more = f" and {len(self.unknown) - _MOST_NAMED:,} more" if len(self.unknown) > _MOST_NAMED else ""
        return (
            f"{self.unknown_images:,} of {self.labelled:,} labelled images have a label that is no class "
            f"and are left out of every accuracy: {named}{more}."
        )

    def measurable(self, max_share: float) -> bool:
        """Whether so few labelled images are left out that an accuracy of the others says something."""
        return self.unknown_images <= max_share * self.labelled

    def require_measurable(self, max_share: float) -> None:
        """Refuses to measure, or to teach, with labels of which too many are no class.

        Raises:
            UserError: If their share is above `max_share`.
        """
        if not self.measurable(max_share):
            raise UserError(refusal(self, max_share))

    def as_dict(self) -> dict[str, object]:
        """The part of ``metrics.json``."""
        return {
            "labelled": self.labelled,
            "unknown_images": self.unknown_images,
            "unknown": [
                {"label": found.label, "images": found.images, "nearest": found.nearest} for found in self.unknown[:100]
            ],
        }


def refusal(found: LabelFindings, max_share: float) -> str:
    """Why nothing is measured, with the way out."""
    return (
        f"{found.sentence.rstrip('.')}; that is more than data.max_error_share={max_share:g} allows, so nothing is "
        "measured: correct the labels or data.class_names, or raise data.max_error_share."
    )


def find_classes(
    space: ClassSpace, labels: Sequence[str | None], *, setting: str = "data.source"
) -> tuple[npt.NDArray[np.int64], LabelFindings]:
    """The classes of labels, and what is to be said of the labels.

    Args:
        space: The classes.
        labels: Labels of all images that are known, so that their numbers can be told apart; None for no label.
        setting: Where the labels come from, for the sentence.

    Returns:
        int64 [N] classes, -1 for no label and for a label that is no class; and the findings.

    Raises:
        UserError: If the labels are numbers of which nobody said whether they start at 0.
    """
    counts = Counter(label for label in labels if label is not None)
    check_numbers(space, counts, setting=setting)
    return space.indices_of(labels), examine(space, counts)


def examine(space: ClassSpace, counts: Mapping[str, int]) -> LabelFindings:
    """Which of the labels, counted in images, are no class; "-1" and "nan" are none, unless a class is called so."""
    counts = {label: n for label, n in counts.items() if label.strip() not in _GAPS or space.index_of(label) >= 0}
    strange = Counter({label: images for label, images in counts.items() if space.index_of(label) < 0})
    unknown = [
        UnknownLabel(
            label=label, images=images, nearest=nearest(label, space.spellings) if i < _MOST_COMPARED else None
        )
        for i, (label, images) in enumerate(sorted(strange.items(), key=lambda item: (-item[1], item[0])))
    ]
    return LabelFindings(labelled=sum(counts.values()), unknown=tuple(unknown))


def check_other_labels(space: ClassSpace, other: Sequence[str]) -> None:
    """Refuses `data.other_labels` that are classes of the run.

    Raises:
        UserError: See above.
    """
    for label in other:
        if (index := space.index_of(label)) >= 0:
            raise UserError(
                f"data.other_labels={list(other)}: {label!r} is the class {space.names[index]!r}, so it cannot "
                "stand for none of these: take it out of data.other_labels or of data.class_names."
            )


def without_other(labels: Iterable[str | None], other: Sequence[str]) -> list[str | None]:
    """The labels, None in the place of those in `data.other_labels`."""
    others = {normal(label) for label in other}
    return [None if label is not None and normal(label) in others else label for label in labels]


def check_numbers(space: ClassSpace, counts: Mapping[str, int], *, setting: str = "data.source") -> None:
    """Refuses labels that are numbers from 1, or from nobody knows where, until `data.first_label` is stated.

    Numbers without a 0 among them may be counted from 1, as in Flowers102, or be a part of those counted from 0: taken
    for the wrong one, every label is that of its neighbour.

    Raises:
        UserError: See above.
    """
    if space.first_label is not None:
        return
    numbers = {number for label in counts if (number := space.place_of(label)) is not None}
    if not numbers or 0 in numbers or min(numbers) > len(space.names):
        return
    low, high, names = min(numbers), max(numbers), space.names
    first = f"1 is the first name, {names[0]!r}, or the second, {names[1]!r}"
    raise UserError(
        f"{setting}: the labels are numbers from {low} to {high} without a 0, and there are {len(names)} class names, "
        f"so it is not clear whether {first}: set data.first_label=1 if they are counted from 1, data.first_label=0 if "
        "from 0."
    )


def _named(found: UnknownLabel) -> str:
    images = "1 image" if found.images == 1 else f"{found.images:,} images"
    hint = f", nearest {found.nearest!r}" if found.nearest is not None else ""
    return f"{found.label[:80]!r} ({images}{hint})"
