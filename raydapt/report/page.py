"""``report.html``: what a run did and what came of it, on one self-contained page without scripts.

Class names, paths, labels and settings are untrusted text: the template escapes all of it, images are embedded
only when their bytes are a known format, and the page's content policy forbids everything but inline style and
embedded images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from raydapt.methods.fair.section import alignment_view
from raydapt.methods.latteclip.section import latteclip_view
from raydapt.report import figures
from raydapt.report.classes import (
    class_names_of,
    class_rows,
    class_tables,
    confused_pairs,
    confusion_counts,
    confusion_view,
    pair_counts,
    read_predictions,
)
from raydapt.report.gallery import choose_gallery, gallery_cards, synthetic_rows
from raydapt.report.run_files import RunRecord, flat_settings, group, open_run, read_run, write_text
from raydapt.report.summary import Round, deployment_rows, headline, rounds_of, settings_of, timings, warnings_of
from raydapt.store.folder import Folder

__all__ = ["choose_gallery", "write_report"]

PARADIGMS = {
    "ul": "unlabelled (UL)",
    "ssl": "few labels per class (SSL)",
    "trzsl": "seen classes labelled (TRZSL)",
}


def write_report(run_folder: str | Path | Folder) -> str:
    """Writes ``report.html`` into a run folder (a local path, an fsspec URL or a `Folder`) and returns its path.

    Needs ``metrics.json``; whatever else is missing (labels, pseudo-labels, training, gallery) is left out of
    the page or said to be missing.

    Raises:
        UserError: When the folder is no run, or cannot be written.
    """
    folder = open_run(run_folder)
    write_text(folder, "report.html", render(read_run(folder)))
    return folder.file("report.html")


def render(run: RunRecord) -> str:
    """The page as text."""
    return page_environment().get_template("report.html.j2").render(_content(run))


def page_environment() -> Environment:
    """Where the pages come from: everything is escaped, an unknown name is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "count": _count,
        "duration": _duration,
        "rate": _rate,
    }
    return environment


def _content(run: RunRecord) -> dict[str, Any]:
    names = class_names_of(run)
    predictions = read_predictions(run)
    rows = class_rows(run, predictions)
    rounds = rounds_of(run)
    head = headline(run, predictions)
    different, settings = settings_of(run)
    method = str(run.metrics.get("method"))
    cards = gallery_cards(run.gallery, run.predictions, names)
    return {
        "metrics": run.metrics,
        "command": run.environment.get("command") or "raydapt run config.yaml",
        "method": method,
        "plain": _is_plain(run),
        "paradigm": PARADIGMS.get(str(run.metrics.get("paradigm")), run.metrics.get("paradigm")),
        "head": head,
        "warnings": warnings_of(run, rows, head, rounds),
        "splits": () if predictions is None else predictions.splits,
        "tables": class_tables(rows),
        "top_share": max([share for row in rows for share in (row.before_share, row.after_share)], default=0.0) or 1.0,
        "judged": any(row.adapted is not None for row in rows),
        "counted": predictions is not None,
        "rounds": rounds,
        "round_columns": _round_columns(rounds),
        "rounds_picture": figures.rounds_picture(run.metrics.get("rounds") or []),
        "students_picture": figures.students_picture(group(run.metrics, "coreg")),
        "annotation": group(group(run.metrics, "coreg"), "annotation"),
        "deployment": deployment_rows(run),
        "curves_picture": figures.curves_picture(run.steps),
        "alignment": alignment_view(run),
        "latteclip": latteclip_view(run),
        "gallery": cards,
        "made": group(run.metrics, "synthetic"),
        "synthetic": synthetic_rows(run.synthetic, run.metrics, cards),
        "timings": timings(run),
        "different": different,
        "settings": settings,
        "environment": flat_settings(run.environment),
    } | _mistakes(run)


def _is_plain(run: RunRecord) -> bool:
    """Whether nothing was adapted, so that there is no before and after."""
    return bool(run.metrics.get("method") == "zero_shot")


def _round_columns(rounds: Sequence[Round]) -> list[tuple[str, list[str]]]:
    """The columns of the rounds' table that hold anything."""
    columns: list[tuple[str, Sequence[float | None], int]] = [
        ("right %", [entry.accuracy for entry in rounds], 1),
        ("candidates hold the true class %", [entry.holds_truth for entry in rounds], 1),
        ("waiting", [entry.waiting for entry in rounds], 0),
        ("dropped", [entry.dropped for entry in rounds], 0),
        ("all images, text alone right %", [entry.judges.get("text") for entry in rounds], 1),
        ("synthetic images alone right %", [entry.judges.get("images") for entry in rounds], 1),
        ("both right %", [entry.judges.get("both") for entry in rounds], 1),
        ("candidates per image", [entry.candidates for entry in rounds], 2),
        ("classes that occur", [entry.classes for entry in rounds], 0),
    ]
    return [
        (title, [_percent(value, digits) for value in values])
        for title, values, digits in columns
        if any(value is not None for value in values)
    ]


def _mistakes(run: RunRecord) -> dict[str, Any]:
    """Confusion and confidence: everything that compares the predictions with labels image by image."""
    names, predictions = class_names_of(run), read_predictions(run)
    counts = confusion_counts(run, predictions)
    before = None if predictions is None else pair_counts(predictions, predictions.before_N)
    sure = None
    if predictions is not None:
        right = (predictions.right(predictions.before_N), predictions.right(predictions.after_N))
        curves = {
            "zero-shot": (predictions.before_confidence_N, right[0]),
            "adapted": (predictions.confidence_N, right[1]),
        }
        if _is_plain(run):
            del curves["adapted"]
        sure = figures.confidence_picture(curves)
    return {
        "confusion": None if counts is None else confusion_view(counts, names),
        "pairs": [] if counts is None else confused_pairs(counts, before, names),
        "confidence_picture": sure,
    }


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _points(value: float | None) -> str:
    """Points with their sign; a difference that rounds to nothing has none."""
    if value is None:
        return "–"
    text = f"{value:+.1f}"
    return "±0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float | None) -> str:
    """Seconds as a reader says them: ``0.4 s``, ``38 s``, ``2 min 05 s``, ``3 h 10 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
