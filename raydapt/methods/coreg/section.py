"""The report's section on Co-Reg: partial labels, the two students, and what is deployed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raydapt.report.figures import LIGHT, dress, picture, series
from raydapt.report.run_files import RunRecord, group, number
from raydapt.report.sections import Block, Column, Picture, Section, Table

_MODELS = {"student": "both students", "clip_image_tower": "CLIP's image tower"}


def sections(run: RunRecord) -> list[Section]:
    """From the group ``coreg`` of metrics.json; none where there is no such group."""
    stored = group(run.metrics, "coreg")
    found = (_students_picture(stored), _annotation(stored), _deployment(stored))
    blocks = [block for block in found if block is not None]
    return [Section(anchor="students", title="Partial labels and students", blocks=blocks)] if blocks else []


def _annotation(stored: Mapping[str, Any]) -> Block | None:
    told = group(stored, "annotation")
    if not told:
        return None
    rows = {
        "zero-shot, first template, % right": ("zero_shot_train", "zero_shot_test"),
        "zero-shot, mean over all that vote, % right": ("zero_shot_mean_train", "zero_shot_mean_test"),
        "candidates per image": ("candidates", ""),
        "sets without the true class, %": ("truth_missing", ""),
    }
    return Table(
        caption="Partial labels",
        note="An image's candidates are the classes that at least one template, or one voting run, takes it for.",
        columns=[
            Column("annotation", "What is measured of the partial labels before anything is learned."),
            Column("training images", "The figure on the images that the students learn from.", "number", 2),
            Column("test images", "The figure on the images that the run is evaluated on.", "number", 2),
        ],
        rows=[(name, number(told.get(train)), number(told.get(test))) for name, (train, test) in rows.items()],
    )


def _deployment(stored: Mapping[str, Any]) -> Block | None:
    measured = group(stored, "deployment")
    rows = []
    for key, name in _MODELS.items():
        entry = group(measured, key)
        if entry:
            size = number(entry.get("bytes"))
            megabytes = None if size is None else size / 1e6
            rows.append((name, number(entry.get("parameters")), megabytes, number(entry.get("images_per_s"))))
    if not rows:
        return None
    return Table(
        caption="What is deployed",
        columns=[
            Column("model", "The students answer together; CLIP's image tower is what they replace."),
            Column("parameters", "Numbers that the model holds.", "count"),
            Column("MB as float32", "10^6 bytes at four bytes a number.", "number", 2),
            Column("images/s", "Measured on this run's machine with batches of 64.", "rate"),
        ],
        rows=rows,
    )


def _students_picture(coreg: Mapping[str, Any]) -> Picture | None:
    """Candidates per image, how the images were divided, and both students over the epochs; None without them."""
    annotation, division, lines = coreg.get("annotation"), coreg.get("division"), coreg.get("students") or []
    if not annotation or not division:
        return None
    counts = np.array(annotation["candidate_counts"], dtype=np.float64)
    epochs = series(lines, "epoch")
    curves = {key: series(lines, key) for key in ("first", "second", "disagreement")}

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 3, squeeze=False)[0]
        axes[0].bar(range(len(counts)), 100 * counts / max(1.0, counts.sum()), color=LIGHT.before, width=0.8)
        dress(axes[0], x_name="candidates", y_name="% of images", title="Candidates per image")
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        for heights, colour, name in zip(division["histogram"], (LIGHT.after, LIGHT.third), ("1", "2"), strict=True):
            share = 100 * np.array(heights) / max(1, sum(heights))
            axes[1].stairs(share, np.linspace(0, 1, len(share) + 1), color=colour, label=f"for student {name}")
        dress(axes[1], x_name="probability that the label is right", y_name="% of images", title="Last division")
        colours = {"first": LIGHT.after, "second": LIGHT.third, "disagreement": LIGHT.before}
        names = {"first": "student 1 right", "second": "student 2 right", "disagreement": "they disagree"}
        for key, values in curves.items():
            if np.isfinite(values).any():
                axes[2].plot(epochs, values, color=colours[key], linewidth=1.4, label=names[key])
        dress(axes[2], x_name="epochs learned", y_name="% of training images", title="Both students")
        for panel in axes[1:]:
            if panel.get_legend_handles_labels()[0]:  # a training of few steps leaves no trace of the students
                panel.legend(frameon=False, labelcolor=LIGHT.text)

    alt = f"Partial labels with {annotation['candidates']:.2f} candidates per image"
    if len(lines) and np.isfinite(curves["first"]).all():
        alt += f"; the students' labels go from {curves['first'][0]:.1f} % to {curves['first'][-1]:.1f} % right"
    return picture(draw, alt=alt + ".")
