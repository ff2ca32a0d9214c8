"""``report.html``: what a run did and what came of it, on one self-contained page without scripts.

Class names, paths, labels and settings are untrusted text: the template escapes all of it, images are embedded
only when their bytes are a known format, and the page's content policy forbids everything but inline style and
embedded images. What only a method knows comes from above: its sections, and the facts about it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from raydapt.report import figures, numbers
from raydapt.report.classes import (
    Predictions,
    class_names_of,
    class_rows,
    class_tables,
    confused_pairs,
    confusion_counts,
    confusion_view,
    pair_counts,
    read_predictions,
)
from raydapt.report.coverage import coverage_of
from raydapt.report.facts import RunFacts
from raydapt.report.gallery import gallery_cards, image_uri
from raydapt.report.run_files import RunRecord, flat_settings, open_run, read_run, write_text
from raydapt.report.sections import Section
from raydapt.report.summary import headline, rounds_of, settings_of, timings, verdict_of, warnings_of
from raydapt.report.tables import (
    data_check_table,
    left_out_table,
    pairs_table,
    rounds_table,
    scores_table,
    timings_table,
)
from raydapt.store.folder import Folder

__all__ = ["page_environment", "render", "write_report"]

PARADIGMS = {
    "ul": "unlabelled (UL)",
    "ssl": "few labels per class (SSL)",
    "trzsl": "seen classes labelled (TRZSL)",
}


def write_report(
    run: RunRecord | str | Path | Folder, sections: Sequence[Section] = (), facts: RunFacts | None = None
) -> str:
    """Writes ``report.html`` into a run folder and returns its path.

    Needs ``metrics.json``; whatever else is missing (labels, pseudo-labels, training, gallery) is left out of
    the page or said to be missing.

    Args:
        run: The folder (a local path, an fsspec URL or a `Folder`), or what `read_run` has read of it.
        sections: What the run's method has to show.
        facts: About the method; without them all settings are shown and none is called a default.

    Raises:
        UserError: When the folder is no run, or cannot be written.
        ValueError: When a record was not read from a folder.
    """
    record = run if isinstance(run, RunRecord) else read_run(open_run(run))
    if record.folder is None:
        raise ValueError("this record was not read from a folder")
    write_text(record.folder, "report.html", render(record, sections, facts))
    return record.folder.file("report.html")


def render(run: RunRecord, sections: Sequence[Section] = (), facts: RunFacts | None = None) -> str:
    """The page as text; see `write_report`."""
    content = _content(run, facts or RunFacts()) | {"sections": sections}
    return page_environment().get_template("report.html.j2").render(content)


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
        "percent": numbers.format_number,
        "points": numbers.format_points,
        "count": numbers.format_count,
        "duration": numbers.format_duration,
        "rate": numbers.format_rate,
        "cell": numbers.format_cell,
        "image_uri": image_uri,
    }
    return environment


def _content(run: RunRecord, facts: RunFacts) -> dict[str, Any]:
    names, predictions = class_names_of(run), read_predictions(run)
    rows, rounds = class_rows(run, predictions), rounds_of(run)
    head = headline(run, predictions)
    different, settings = settings_of(run, facts)
    times = timings(run)
    return {
        "metrics": run.metrics,
        "command": run.environment.get("command") or "raydapt run config.yaml",
        "method": str(run.metrics.get("method")),
        "learned": facts.learned,
        "plain": not facts.adapts,
        "paradigm": PARADIGMS.get(str(run.metrics.get("paradigm")), run.metrics.get("paradigm")),
        "head": head,
        "verdict": verdict_of(run),
        "warnings": warnings_of(run, rows, head, rounds),
        "left_out": left_out_table(run.metrics),
        "data_check": data_check_table(run.metrics),
        "scores": scores_table(run),
        "splits": () if predictions is None else predictions.splits,
        "tables": class_tables(rows),
        "top_share": max([share for row in rows for share in (row.before_share, row.after_share)], default=0.0) or 1.0,
        "judged": any(row.adapted is not None for row in rows),
        "counted": predictions is not None,
        "rounds": rounds,
        "rounds_table": rounds_table(rounds),
        "rounds_picture": figures.rounds_picture(run.metrics.get("rounds") or []),
        "curves_picture": figures.curves_picture(run.steps),
        "gallery": gallery_cards(run.gallery, run.predictions, names),
        "timings": timings_table(times) if times else None,
        "different": different,
        "settings": settings,
        "environment": flat_settings(run.environment),
    } | _mistakes(run, predictions, adapts=facts.adapts)


def _mistakes(run: RunRecord, predictions: Predictions | None, *, adapts: bool) -> dict[str, Any]:
    """Confusion and confidence: everything that compares the predictions with labels image by image."""
    names = class_names_of(run)
    counts = confusion_counts(run, predictions)
    before = None if predictions is None else pair_counts(predictions, predictions.before_N)
    sure = None
    if predictions is not None:
        right = (predictions.right(predictions.before_N), predictions.right(predictions.after_N))
        curves = {"zero-shot": (predictions.before_confidence_N, right[0])}
        if adapts:
            curves["adapted"] = (predictions.confidence_N, right[1])
        sure = figures.confidence_picture(curves)
    pairs = [] if counts is None else confused_pairs(counts, before, names)
    return {
        "confusion": None if counts is None else confusion_view(counts, names),
        "pairs": pairs_table(pairs, adapts=adapts) if pairs else None,
        "confidence_picture": sure,
        "coverage": None if predictions is None else coverage_of(predictions),
    }
