"""The tables that every report has, whatever the method: confused pairs, rounds, scores, times, labels left out."""

from collections.abc import Mapping, Sequence
from typing import Any

from raydapt.report.classes import ConfusedPair
from raydapt.report.run_files import RunRecord, group, number
from raydapt.report.sections import Column, Table
from raydapt.report.summary import Round, Timing

_SCORES = {
    "synthetic_accuracy": "Share of held-out synthetic images, which nothing learned from, "
    "that are taken for their class.",
    "agreement": "Share of images that other classifiers take for the same class.",
    "cluster_agreement": "Mutual information with clusters of the frozen features, 0 by chance.",
    "class_balance": "Entropy of the predicted classes, 1 when all are predicted equally often.",
    "prior_match": "1 when classes are predicted as often as data.class_prior says.",
    "mutual_information": "High when each image is sure and the classes are even.",
    "neighbourhood_density": "High when images lie in dense groups of like answers.",
    "calibrated_accuracy": "Accuracy that the confidence predicts, after calibration on held-out synthetic images.",
    "stability": "Share of images whose class stays the same under another view.",
}


def pairs_table(pairs: Sequence[ConfusedPair], *, adapts: bool) -> Table:
    """The most frequent mistakes; without a before and after the column of zero-shot is left out."""
    columns = [
        Column("images of", "The true class."),
        Column("taken for", "The predicted class."),
        Column("images", "Images of the one class that are taken for the other.", "count"),
        Column("of the class %", "Their share of all evaluated images of the true class.", "percent"),
        Column("zero-shot did so", "How many images of the one class zero-shot took for the other.", "count"),
    ]
    rows = [(pair.truth, pair.predicted, pair.count, pair.share, pair.before) for pair in pairs]
    last = len(columns) if adapts else len(columns) - 1
    return Table(columns=columns[:last], rows=[row[:last] for row in rows], caption="Most confused")


def rounds_table(rounds: Sequence[Round]) -> Table:
    """The rounds of pseudo-labels, with the columns that hold anything."""
    columns = [
        Column("round", "Pseudo-labels are given anew in every round.", "count"),
        Column("images", "Images that got a pseudo-label.", "count"),
        Column("right %", "Share of them whose pseudo-label is the true class; needs labels.", "percent"),
        Column("candidates hold the true class %", "Share of them whose candidate classes include the true class.",
               "percent"),
        Column("unplaced", "Images with candidate classes, all of which were full.", "count"),
        Column("without candidates", "Images that no class is likely enough for.", "count"),
        Column("candidates per image", "Mean number of candidate classes of a pseudo-labelled image.", "number", 2),
        Column("classes that occur", "Classes that at least one pseudo-labelled image has as a candidate.", "count"),
    ]  # fmt: skip
    rows = [
        (
            i,
            entry.selected,
            entry.accuracy,
            entry.holds_truth,
            entry.unplaced,
            entry.without_candidates,
            entry.candidates,
            entry.classes,
        )
        for i, entry in enumerate(rounds, start=1)
    ]
    return Table(columns=columns, rows=rows).without_empty_columns()


def scores_table(run: RunRecord) -> Table | None:
    """The scores that need no label, the run's beside zero-shot's where metrics.json has these; None without any."""
    after, before = group(run.metrics, "scores"), group(run.metrics, "zero_shot_scores")
    names = [key for key in dict.fromkeys((*_SCORES, *after, *before)) if key in after or key in before]
    rows = []
    for name in names:
        was, now = number(before.get(name)), number(after.get(name))
        gain = None if was is None or now is None else now - was
        rows.append((name.replace("_", " "), was, now, gain, _SCORES.get(name, "–")))
    rows = [row for row in rows if row[1] is not None or row[2] is not None]
    if not rows:
        return None
    columns = [
        Column("score", "None of them looks at a label; higher is better for all."),
        Column("zero-shot", "The score of zero-shot on the same images.", "number", 3),
        Column("this run", "The score of the run's final model.", "number", 3),
        Column("change", "This run minus zero-shot.", "number", 3),
        Column("what it is", "What the score measures."),
    ]
    note = "A score is a hint, not an accuracy: compare it between models of the same images alone."
    return Table(columns=columns, rows=rows, note=note).without_empty_columns()


def timings_table(timings: Sequence[Timing]) -> Table:
    """How long stages and training took."""
    columns = [
        Column("step", "A stage that makes something of all images, or the training."),
        Column("rows", "Images, or other things, that the stage made.", "count"),
        Column("time", "Wall-clock time.", "duration"),
        Column("of the longest", "The time as a share of the longest step's.", "bar"),
        Column("images/s", "Rows over wall-clock time, start-up included.", "rate"),
        Column("in the model %", "Share of the time that actors spent computing; the rest is reading and waiting.",
               "percent", 0),
        Column("of peak %", "Of what the devices could compute in that time by their data sheets.", "percent", 0),
        Column("reused", "Whether an earlier run had made it, so that it cost this run nothing."),
    ]  # fmt: skip
    rows: list[tuple[Any, ...]] = [
        (t.name, t.rows, t.seconds, t.share, t.rows_per_s, t.model_share, t.share_of_peak, "reused" if t.reused else "")
        for t in timings
    ]
    if all(t.share_of_peak is None for t in timings):  # as on every processor
        columns, rows = [*columns[:-2], columns[-1]], [(*row[:-2], row[-1]) for row in rows]
    return Table(columns=columns, rows=rows)


_CHECKED = {
    "unreadable": ("cannot be read", "They are left out of everything."),
    "copy": ("copies", "The same bytes as an image before them."),
    "near_copy": ("near copies", "The same picture as one before them, in another size, quality or brightness."),
    "blank": ("blank", "Hardly any contrast."),
    "blurry": ("blurry", "Less than a third as sharp as the set's median image."),
    "odd_shape": ("long and narrow", "The model sees a square crop: most of such an image is left out."),
}


def data_check_table(metrics: Mapping[str, Any]) -> Table | None:
    """What was found before learning, with some paths; None where nothing was."""
    found = metrics.get("data_check") or {}
    images, examples = found.get("images") or {}, found.get("examples") or {}
    rows = [
        (words, number(images[kind]), what, ", ".join(map(str, examples.get(kind) or [])))
        for kind, (words, what) in _CHECKED.items()
        if images.get(kind)
    ]
    columns = [
        Column("kind", "What is wrong with the images."),
        Column("images", "Of all images of the source.", "count"),
        Column("what it means", "How such images were told."),
        Column("such as", "Some of their paths; all of them are in data-check.parquet."),
    ]
    return Table(columns=columns, rows=rows) if rows else None


def left_out_table(metrics: Mapping[str, Any]) -> Table | None:
    """Labels of the source that are no class of the run, with their images; None where there are none."""
    entries = [entry for entry in metrics.get("labels_left_out") or [] if isinstance(entry, dict)]
    if not entries:
        return None
    rows = [
        (str(entry.get("label")), number(entry.get("images")), str(entry.get("nearest") or "–")) for entry in entries
    ]
    columns = [
        Column("label", "A label of the source that is not the name of a class."),
        Column("images", "Images with this label; they count in no accuracy.", "count"),
        Column("nearest class", "The class whose name is spelled most like it."),
    ]
    return Table(columns=columns, rows=rows)
