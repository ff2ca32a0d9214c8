"""The report's figures: matplotlib SVGs as data: URIs, one for light and one for dark screens.

No text of the user (class names, paths) is drawn: it stands in the HTML, where it is escaped, every script
has a font and nothing is read as mathematics. So a figure holds axis names and numbers alone.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raydapt.report.run_files import number
from raydapt.report.sections import Picture

MOST_POINTS = 600
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours that are legible on one background; orange and blue stay apart for colour-blind readers.

    Lower-case hexadecimal, as they stand in the SVG; no two of a palette are equal.
    """

    text: str
    grid: str
    before: str
    after: str
    third: str


LIGHT = Palette(text="#3d4653", grid="#dfe3e8", before="#98a2b3", after="#2563eb", third="#c2570c")
DARK = Palette(text="#c3cad4", grid="#2a3038", before="#8590a2", after="#6ea0ff", third="#f59e5b")


def rounds_picture(rounds: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Pseudo-labels per round: how many, and how many of them are right; None for fewer than two rounds."""
    if len(rounds) < 2:
        return None
    x = list(range(1, len(rounds) + 1))
    selected = [number(entry.get("selected")) or 0.0 for entry in rounds]
    right = series(rounds, "accuracy")
    holds = series(rounds, "holds_truth")
    judged = bool(np.isfinite(right).any())

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
        axes[0].bar(x, selected, color=LIGHT.before, width=0.7)
        dress(axes[0], x_name="round", y_name="images", title="Pseudo-labelled images")
        if judged:
            if np.isfinite(holds).any():
                axes[1].plot(x, holds, "o--", color=LIGHT.third, markersize=4, label="candidates hold the true class")
            axes[1].plot(x, right, "o-", color=LIGHT.after, markersize=4, label="pseudo-label is the true class")
            dress(axes[1], x_name="round", y_name="%", title="Accuracy of the pseudo-labels")
            axes[1].legend(frameon=False, labelcolor=LIGHT.text)
        for panel in axes:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))

    ends = f"from {selected[0]:,.0f} images in the first round to {selected[-1]:,.0f} in the last"
    accuracy = f"; accuracy from {right[0]:.1f} % to {right[-1]:.1f} %" if judged else ""
    return picture(draw, alt=f"Pseudo-labels per round: {ends}{accuracy}.")


def curves_picture(steps: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Loss, learning rate and speed over the logged steps; None when no loss was logged."""
    lines = [entry for entry in steps if number(entry.get("loss")) is not None]
    if len(lines) < 2:
        return None
    keep = np.unique(np.linspace(0, len(lines) - 1, min(len(lines), MOST_POINTS)).astype(int))
    x = keep + 1
    loss = series(lines, "loss")
    panels = [("learning_rate", "Learning rate", ""), ("images_per_s", "Speed", "images/s")]
    panels = [panel for panel in panels if np.isfinite(series(lines, panel[0])).any()]
    numbers = [int(entry.get("round") or 0) for entry in lines]
    starts = [i for i in range(1, len(lines)) if numbers[i] != numbers[i - 1]]
    smooth = np.concatenate([_smooth(part) for part in np.split(loss, starts)])

    def draw(figure: Figure) -> None:
        ratios = [2.0] + [1.0] * len(panels)
        axes = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
        axes[0].plot(x, loss[keep], color=LIGHT.before, linewidth=0.8)
        axes[0].plot(x, smooth[keep], color=LIGHT.after, linewidth=1.8)
        for start in starts:
            axes[0].axvline(start + 0.5, color=LIGHT.grid, linewidth=1, zorder=0)
        dress(axes[0], x_name="logged step", y_name="loss", title="Training loss")
        for panel, (key, title, unit) in zip(axes[1:], panels, strict=True):
            panel.plot(x, series(lines, key)[keep], color=LIGHT.after, linewidth=1.2)
            dress(panel, x_name="logged step", y_name=unit, title=title)

    alt = f"Training curves over {len(lines):,} logged steps: loss from {loss[0]:.3g} to {loss[-1]:.3g}."
    return picture(draw, alt=alt)


def confidence_picture(classifiers: Mapping[str, tuple[Floats, Floats]]) -> Picture | None:
    """How sure the classifiers are and, where labels are known, how often they are right when that sure.

    Args:
        classifiers: For "zero-shot" and perhaps "adapted": the probability of the class that it gives to each
            image, 0-1, and 1.0 where that is right, 0.0 where wrong, NaN where unknown.
    """
    if not all(len(sure) and np.isfinite(sure).all() for sure, _ in classifiers.values()):
        return None
    edges = np.linspace(0.0, 1.0, 21)
    judged = any(bool(np.isfinite(right).any()) for _, right in classifiers.values())

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
        for name, (sure, right) in classifiers.items():
            colour = LIGHT.before if name == "zero-shot" else LIGHT.after
            share = 100.0 * np.histogram(sure.clip(0, 1), edges)[0] / len(sure)
            axes[0].stairs(share, edges, color=colour, fill=name == "zero-shot", alpha=0.75, linewidth=1.8, label=name)
            if judged:
                axes[1].plot(*_reliability(sure, right), "o-", color=colour, markersize=4, label=name)
        dress(axes[0], x_name="confidence", y_name="% of images", title="Confidence")
        axes[0].margins(y=0.25)
        axes[0].legend(frameon=False, labelcolor=LIGHT.text, loc="upper center", ncols=2)
        if judged:
            axes[1].plot([0, 1], [0, 100], ":", color=LIGHT.text, linewidth=1)
            dress(axes[1], x_name="confidence", y_name="% right", title="Calibration (dotted: as sure as right)")

    means = ", ".join(f"{100 * sure.mean():.1f} % {name}" for name, (sure, _) in classifiers.items())
    return picture(draw, alt=f"Confidence of the predictions: mean {means}.")


def _reliability(sure: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Mean confidence and percent right in ten bins of confidence; bins of fewer than 5 images are left out."""
    known = np.isfinite(right)
    place = np.minimum((sure[known].clip(0, 1) * 10).astype(int), 9)
    images = np.bincount(place, minlength=10)
    full = images >= 5
    sure_sum = np.bincount(place, weights=sure[known], minlength=10)[full]
    right_sum = np.bincount(place, weights=right[known], minlength=10)[full]
    return sure_sum / images[full], 100.0 * right_sum / images[full]


def series(entries: Sequence[Mapping[str, Any]], key: str) -> Floats:
    """The figures under a key; NaN where there is none."""
    return np.array([np.nan if (v := number(e.get(key))) is None else v for e in entries], dtype=np.float64)


def _smooth(values: Floats) -> Floats:
    """Centred running mean over about a 25th of the steps; shorter windows at the ends."""
    half = max(1, len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    left = np.maximum(np.arange(len(values)) - half, 0)
    right = np.minimum(np.arange(len(values)) + half + 1, len(values))
    smoothed: Floats = (sums[right] - sums[left]) / (right - left)
    return smoothed


def dress(axes: Axes, *, x_name: str, y_name: str, title: str) -> None:
    """Titles, a light horizontal grid and no box."""
    axes.set_title(title, loc="left", color=LIGHT.text, fontsize=10, fontweight="bold")
    axes.set_xlabel(x_name, color=LIGHT.text)
    axes.set_ylabel(y_name, color=LIGHT.text)
    axes.tick_params(colors=LIGHT.text, length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LIGHT.grid, linewidth=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LIGHT.grid)


def picture(draw: Callable[[Figure], None], *, alt: str, width: float = 9.6, height: float = 2.9) -> Picture:
    """Draws once, in light colours; the dark picture is the same one with the other palette.

    The SVG depends on its content alone: no date, no random ids.
    """
    style: Any = {"font.size": 9, "svg.hashsalt": "raydapt", "font.family": "DejaVu Sans", "text.parse_math": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    light = buffer.getvalue()
    dark = light
    for colour in fields(Palette):
        dark = dark.replace(getattr(LIGHT, colour.name).encode(), getattr(DARK, colour.name).encode())
    return Picture(light=_uri(light), dark=_uri(dark), alt=alt)


def _uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
