"""Accuracy against the number of synthetic images per class, all cut from one artefact.

The largest count is made once; image i of a class is the same one whatever the count, so every smaller set is its
beginning, and no run makes an image of its own. Without synthetic images AiR is its base.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raydapt.errors import UserError
from raydapt.methods.air.settings import AirSettings
from raydapt.run import pipeline
from raydapt.settings.config import Config
from raydapt.store.run_record import Run

COUNTS = (0, 5, 10, 20, 50, 100, 150, 300, 500)


def sample_curve(config: Config, counts: Sequence[int] = COUNTS) -> tuple[Run, list[dict[str, Any]]]:
    """Runs a job with several numbers of synthetic images per class.

    Args:
        config: A job with ``method=air``.
        counts: Images per class; 0 is the base alone.

    Returns:
        The folder with ``curve.json`` and ``curve.svg``, and the points: samples_per_class, run, zero_shot and adapted
        (top-1 in percent; null without labels), pseudo_labels (accuracy), label_free_score.

    Raises:
        UserError: For another method or no counts; see also `raydapt.run.pipeline.run`.
    """
    if config.method != "air":
        raise UserError(f"Setting method={config.method!r} has no synthetic images to count: use method=air.")
    if not counts or min(counts) < 0:
        raise UserError(f"Counts {list(counts)} are no numbers of images: give some, none below 0.")
    # The largest first: what it makes is what all the others are cut from.
    points = [_point(config, count) for count in sorted(set(counts), reverse=True)][::-1]
    first = points[-1]["run"].name
    record = Run(config.runs, f"samples-{first}" if config.name == "auto" else config.name)
    for point in points:
        point["run"] = point["run"].name
    record.write_json("curve.json", points)
    record.write_bytes("curve.svg", _picture(points))
    return record, points


def at_count(config: Config, count: int) -> Config:
    """The settings of one point of the curve."""
    name = config.name if config.name == "auto" else f"{config.name}-{count}"
    if not count:
        return replace(config, name=name).with_own(
            replace(config.of(AirSettings), fusion_weight=0.0, synthetic_weight=0.0)
        )
    return replace(config, name=name, synthesis=replace(config.synthesis, samples_per_class=count))


def format_points(points: Sequence[dict[str, Any]]) -> str:
    """The curve as a table of text."""
    lines = [f"{'per class':>9}  {'top-1 %':>8}  {'pseudo-labels right %':>21}  {'label-free score':>16}"]
    for point in points:
        numbers = [_number(point[key], digits) for key, digits in (("adapted", 2), ("pseudo_labels", 2))]
        score = _number(point["label_free_score"], 3)
        lines.append(f"{point['samples_per_class']:>9}  {numbers[0]:>8}  {numbers[1]:>21}  {score:>16}")
    return "\n".join(lines)


def _point(config: Config, count: int) -> dict[str, Any]:
    run = pipeline.run(at_count(config, count))
    metrics = json.loads(run.read_bytes("metrics.json"))
    figure = "harmonic_mean" if metrics["paradigm"] == "trzsl" else "top1"
    return {
        "samples_per_class": count,
        "run": run,
        "zero_shot": metrics["zero_shot"].get(figure),
        "adapted": metrics["adapted"].get(figure),
        "pseudo_labels": metrics["pseudo_labels"]["accuracy"],
        "label_free_score": metrics["label_free_score"],
    }


def _picture(points: Sequence[dict[str, Any]]) -> bytes:
    """Accuracy over the count, as an SVG; the label-free score where there are no labels."""
    judged = all(point["adapted"] is not None for point in points)
    key, name = ("adapted", "accuracy (%)") if judged else ("label_free_score", "label-free score")
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([point["samples_per_class"] for point in points], [point[key] for point in points], "o-")
    axes.set_xscale("symlog", linthresh=5)
    axes.set_xticks([point["samples_per_class"] for point in points], labels=None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xlabel("synthetic images per class")
    axes.set_ylabel(name)
    axes.grid(alpha=0.3)
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue()


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
