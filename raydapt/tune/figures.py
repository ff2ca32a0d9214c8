"""The figures of a sweep's report.

Legend: T trials.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raydapt.report.figures import LIGHT, dress, picture
from raydapt.report.sections import Picture
from raydapt.tune.selection import Floats, Trial

COUNT = "synthesis.samples_per_class"
_LONGEST_LABEL = 14
_LOG_RATIO = 20


def parallel_picture(ranked: Sequence[tuple[Trial, float]], defaults: Mapping[str, Any]) -> Picture | None:
    """Every trial as a line through its settings to its combined score; the chosen one stands out.

    Args:
        ranked: Of `raydapt.tune.selection.ranking`.
        defaults: What a setting is where a trial leaves it to the job.
    """
    names = sorted({name for trial, _ in ranked for name in trial.settings})
    if not names or len(ranked) < 2:
        return None
    columns = [[trial.settings.get(name, defaults.get(name)) for trial, _ in ranked] for name in names]
    places = [_places(column) for column in columns]
    combined_T = np.array([score for _, score in ranked])
    height_T = (combined_T - combined_T.min()) / max(float(np.ptp(combined_T)), 1e-12)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        lines = np.stack([place_T for place_T, _ in places] + [height_T], axis=1)
        x = np.arange(lines.shape[1])
        for at in range(len(lines) - 1, 0, -1):
            axes.plot(x, lines[at], color=LIGHT.after, alpha=float(0.12 + 0.5 * height_T[at]), linewidth=1.2)
        axes.plot(x, lines[0], color=LIGHT.third, linewidth=2.6)
        for at, (_, ticks) in enumerate(places):
            axes.axvline(at, color=LIGHT.grid, linewidth=1, zorder=0)
            for height, label in ticks:
                axes.annotate(label, (at, height), xytext=(3, 0), textcoords="offset points", color=LIGHT.text, size=7)
        dress(axes, x_name="", y_name="", title="Settings of every trial, and the combined score")
        axes.set_xticks(x, [*names, "combined score"])
        axes.set_yticks([])
        axes.margins(x=0.08)

    chosen = ", ".join(f"{name} {column[0]}" for name, column in zip(names, columns, strict=True))
    return picture(draw, alt=f"Parallel coordinates of {len(ranked)} trials; chosen: {chosen}.", height=3.6)


def count_picture(ranked: Sequence[tuple[Trial, float]]) -> Picture | None:
    """Combined score, and in a study accuracy, over synthetic images per class; None where that was not varied."""
    counted = [(trial, score) for trial, score in ranked if COUNT in trial.settings]
    if len({trial.settings[COUNT] for trial, _ in counted}) < 2:
        return None
    x = np.array([trial.settings[COUNT] for trial, _ in counted], dtype=np.float64)
    curves: list[tuple[str, Floats]] = [("combined score", np.array([score for _, score in counted]))]
    if all(trial.accuracy is not None for trial, _ in counted):
        curves.append(("accuracy (%)", np.array([trial.accuracy for trial, _ in counted], dtype=np.float64)))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (name, y) in zip(panels, curves, strict=True):
            axes.plot(x, y, "o", color=LIGHT.before, markersize=4)
            levels = np.unique(x)
            axes.plot(levels, [y[x == level].mean() for level in levels], "-", color=LIGHT.after, linewidth=1.6)
            dress(axes, x_name="synthetic images per class", y_name=name, title="Mean over the other settings")

    return picture(draw, alt=f"Scores over {len(np.unique(x))} numbers of synthetic images per class.")


def cost_picture(ranked: Sequence[tuple[Trial, float]]) -> Picture | None:
    """What each trial took against its combined score."""
    if len(ranked) < 2:
        return None
    seconds = [trial.seconds for trial, _ in ranked]
    combined = [score for _, score in ranked]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(seconds, combined, "o", color=LIGHT.before, markersize=5)
        axes.plot(seconds[:1], combined[:1], "o", color=LIGHT.third, markersize=8)
        dress(axes, x_name="seconds", y_name="combined score", title="Cost of every trial")
        axes.set_xlim(left=0)

    return picture(draw, alt=f"Trials took {min(seconds):.1f} to {max(seconds):.1f} seconds.")


def _places(values: Sequence[Any]) -> tuple[Floats, list[tuple[float, str]]]:
    """Heights 0..1 of values, and labelled ticks: numbers in proportion (log where they span much), others in order."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        number_T = np.array(values, dtype=np.float64)
        low, high = float(number_T.min()), float(number_T.max())
        if low > 0 and high / low >= _LOG_RATIO:
            number_T = np.log(number_T)
        spread = max(float(np.ptp(number_T)), 1e-12)
        return (number_T - number_T.min()) / spread, [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]
    kinds = sorted({str(value) for value in values})
    height = {kind: at / max(1, len(kinds) - 1) for at, kind in enumerate(kinds)}
    place_T = np.array([height[str(value)] for value in values])
    return place_T, [(place, kind[:_LONGEST_LABEL]) for kind, place in height.items()]
