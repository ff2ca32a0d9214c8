"""The report's facts about classes: predictions before and after, recall per class, what is confused with what.

N evaluated images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydapt.report.run_files import RunRecord, group, number

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_CELLS = 25
"""Classes up to which the whole confusion matrix is shown."""
MOST_ROWS = 40
"""Classes up to which every class stands in the first table."""
EXTREMES = 10


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The evaluated images: classes as indices into `names`, -1 where unknown; confidences 0-1."""

    names: tuple[str, ...]
    splits: tuple[str, ...]
    before_N: Ints
    after_N: Ints
    truth_N: Ints
    before_confidence_N: Floats
    confidence_N: Floats

    def right(self, guess_N: Ints) -> Floats:
        """1.0 right, 0.0 wrong, NaN unknown."""
        return np.where(self.truth_N < 0, np.nan, (guess_N == self.truth_N).astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: evaluated images, recall in percent before and after, predictions of it before and after.

    `unseen`: TRZSL: no image of the class was labelled in training.
    """

    name: str
    images: int | None
    zero_shot: float | None
    adapted: float | None
    before: int | None
    after: int | None
    before_share: float = 0.0
    after_share: float = 0.0
    unseen: bool = False

    @property
    def delta(self) -> float | None:
        """Points gained."""
        return None if self.zero_shot is None or self.adapted is None else self.adapted - self.zero_shot


@dataclass(frozen=True, kw_only=True)
class ClassTables:
    """Titled tables of classes: with few classes one holds all, with many the extremes come first."""

    shown: list[tuple[str, list[ClassRow]]]
    complete: list[ClassRow]


@dataclass(frozen=True, kw_only=True)
class ConfusionView:
    """A matrix of at most `MOST_CELLS` classes: names, counts and the row's shares (0-1)."""

    names: list[str]
    cells: list[list[tuple[int, float]]]
    part_of: int | None


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Images of one class that are taken for another; `before`: how many zero-shot took so, None if unknown."""

    truth: str
    predicted: str
    count: int
    share: float
    before: int | None


def class_names_of(run: RunRecord) -> tuple[str, ...]:
    """The run's class names in order; taken from the predictions where the metrics do not hold them."""
    names = run.metrics.get("class_names") or [
        c["name"] for c in group(run.metrics, "evaluation").get("per_class") or []
    ]
    if not names and run.predictions is not None:
        found = {*run.predictions["zero_shot"].to_pylist(), *run.predictions["predicted"].to_pylist()}
        names = sorted(name for name in found if name is not None)
    return tuple(str(name) for name in names)


def read_predictions(run: RunRecord) -> Predictions | None:
    """The evaluated images of ``predictions.parquet``: those of the test splits, or all if there are none."""
    table, names = run.predictions, class_names_of(run)
    if table is None or not table.num_rows or not names:
        return None
    wanted = [str(split) for split in group(run.config, "data").get("test_splits") or []]
    chosen = pc.is_in(table["split"].cast(pa.string()), value_set=pa.array(wanted, pa.string()))
    if pc.any(chosen).as_py():
        table = table.filter(chosen)
    splits = sorted(str(split) for split in pc.unique(table["split"]).to_pylist() if split is not None)
    return Predictions(
        names=names,
        splits=tuple(splits),
        before_N=_positions(table["zero_shot"], names),
        after_N=_positions(table["predicted"], names),
        truth_N=_positions(table[truth_column(table)], names),
        before_confidence_N=_floats(table["zero_shot_confidence"]),
        confidence_N=_floats(table["confidence"]),
    )


def truth_column(predictions: pa.Table) -> str:
    """The column of true class names: ``class`` where there is one, since stored labels may be worded otherwise."""
    return "class" if "class" in predictions.column_names else "label"


def class_rows(run: RunRecord, predictions: Predictions | None) -> list[ClassRow]:
    """One row per class, in the run's order."""
    names = class_names_of(run)
    judged = {str(c["name"]): c for c in group(run.metrics, "evaluation").get("per_class") or []}
    unseen = {str(name) for name in run.metrics.get("unseen_classes") or []}
    counts = None
    if predictions is not None:
        counts = [_count(guess_N, len(names)) for guess_N in (predictions.before_N, predictions.after_N)]
    rows = []
    for i, name in enumerate(names):
        figures = judged.get(name, {})
        before, after = (int(counts[0][i]), int(counts[1][i])) if counts else (None, None)
        images = number(figures.get("images"))
        rows.append(
            ClassRow(
                name=name,
                images=None if images is None else int(images),
                zero_shot=number(figures.get("zero_shot")),
                adapted=number(figures.get("adapted")),
                before=before,
                after=after,
                unseen=name in unseen,
                before_share=before / max(1, counts[0].sum()) if counts and before is not None else 0.0,
                after_share=after / max(1, counts[1].sum()) if counts and after is not None else 0.0,
            )
        )
    return rows


def class_tables(rows: Sequence[ClassRow]) -> ClassTables:
    """Sorts the classes so that a reader meets the largest changes first."""
    if not any(row.delta is not None for row in rows):
        by_count = sorted(rows, key=lambda row: -(row.after or 0))
        if len(rows) <= MOST_ROWS:
            return ClassTables(shown=[("", by_count)], complete=[])
        most, fewest = by_count[: 2 * EXTREMES], by_count[-EXTREMES:]
        return ClassTables(
            shown=[("Predicted most often", most), ("Predicted least often", fewest)], complete=list(rows)
        )
    judged = sorted(
        (row for row in rows if row.delta is not None), key=lambda row: (-(row.delta or 0.0), -(row.adapted or 0.0))
    )
    if len(rows) <= MOST_ROWS:
        return ClassTables(shown=[("", judged + [row for row in rows if row.delta is None])], complete=[])
    weakest = sorted(judged, key=lambda row: row.adapted or 0.0)[:EXTREMES]
    shown = [
        ("Gained most", judged[:EXTREMES]),
        ("Lost most", judged[: -EXTREMES - 1 : -1]),
        ("Weakest after adaptation", weakest),
    ]
    return ClassTables(shown=shown, complete=list(rows))


def confusion_counts(run: RunRecord, predictions: Predictions | None) -> Ints | None:
    """The adapted classifier's confusion [C, C] (row = true class), or None without labels."""
    stored = group(run.metrics, "evaluation").get("confusion")
    if stored:  # folders of earlier releases
        return np.array(stored, dtype=np.int64)
    return None if predictions is None else pair_counts(predictions, predictions.after_N)


def pair_counts(predictions: Predictions, guess_N: Ints) -> Ints | None:
    """Counts [C, C] of (true class, guess); None when no image has a label."""
    known = (predictions.truth_N >= 0) & (guess_N >= 0)
    if not known.any():
        return None
    classes = len(predictions.names)
    flat = np.bincount(predictions.truth_N[known] * classes + guess_N[known], minlength=classes * classes)
    return flat.reshape(classes, classes)


def confusion_view(counts: Ints, names: Sequence[str]) -> ConfusionView:
    """The whole matrix, or with many classes the `MOST_CELLS` that take part in the most mistakes."""
    chosen = np.arange(len(counts))
    if len(counts) > MOST_CELLS:
        wrong = counts - np.diag(np.diag(counts))
        mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
        chosen = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CELLS])
    totals = np.maximum(counts.sum(axis=1), 1)
    cells = [[(int(counts[i, j]), float(counts[i, j] / totals[i])) for j in chosen] for i in chosen]
    part_of = len(counts) if len(counts) > MOST_CELLS else None
    return ConfusionView(names=[names[i] for i in chosen.tolist()], cells=cells, part_of=part_of)


def confused_pairs(counts: Ints, before: Ints | None, names: Sequence[str], most: int = EXTREMES) -> list[ConfusedPair]:
    """The most frequent mistakes, most frequent first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = []
    for i, j in (divmod(int(place), len(wrong)) for place in order):
        if wrong[i, j] == 0:
            break
        share = 100.0 * float(wrong[i, j] / counts[i].sum())
        earlier = None if before is None else int(before[i, j])
        pairs.append(
            ConfusedPair(truth=names[i], predicted=names[j], count=int(wrong[i, j]), share=share, before=earlier)
        )
    return pairs


def _positions(column: pa.ChunkedArray, names: Sequence[str]) -> Ints:
    """The place of each value among the names; -1 where it is null or not among them."""
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(names, pa.string()), skip_nulls=True)
    positions: Ints = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return positions


def _floats(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.cast(pa.float64()).to_numpy()
    return values


def _count(guess_N: Ints, classes: int) -> Ints:
    return np.bincount(guess_N[guess_N >= 0], minlength=classes)
