"""Compares runs: one row per dataset, paradigm, method and its settings, with mean and spread over the seeds.

The comparison is a pandas DataFrame, for notebooks; `format_table`, `format_markdown` and `format_csv` print it.
Accuracies are in percent, times in seconds.
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raydapt.report.facts import FactsOf, RunFacts, no_facts
from raydapt.report.run_files import RunRecord, flat_settings, group, number, open_run, read_summary, write_text
from raydapt.store.folder import Folder

# Settings that say where and how fast, or which repetition, or that have a column of their own: runs that differ in
# these alone are one row.
_INDIFFERENT = {
    "seed",
    "name",
    "runs",
    "store",
    "method",
    "data.source",
    "data.paradigm",
    "data.split_seed",
    "model.prompt",
    "track",
}
_INDIFFERENT |= {f"train.{name}" for name in ("workers", "gpus_per_worker", "cpus_per_worker", "gradient_accumulation")}
_INDIFFERENT |= {f"train.{name}" for name in ("checkpoint_every_s", "max_failures", "predict_batch_size", "precision")}
_INDIFFERENT_GROUPS = ("ray.", "features.")
_SAME = ["dataset", "paradigm", "method", "learned"]
_FIGURES = (
    "zero_shot",
    "adapted",
    "delta",
    "unguarded",
    "seen",
    "unseen",
    "harmonic_mean",
    "pseudo_labels",
    "label_free_score",
    "seconds",
)
_WIDEST = 10_000  # columns of a line that is never broken


def compare(run_folders: Iterable[str | Path | Folder], facts_of: FactsOf = no_facts) -> pd.DataFrame:
    """Reads the runs and groups them over their seeds.

    Of runs that repeat the same settings and seed the one named last counts.

    Args:
        run_folders: Of finished runs: local paths, fsspec URLs or `Folder`.
        facts_of: What is known of a run's method: the settings that it goes by, what it learns, its place in order.

    Returns:
        A frame with the columns dataset, paradigm, method, learned; settings (those in which rows of the same four
        differ, else empty); seeds (in TRZSL ``seed/split_seed``); and for each of zero_shot, adapted, delta (points
        gained run by run), unguarded (what the adapted model alone reaches; in TRZSL all four are harmonic means),
        seen, unseen, harmonic_mean, pseudo_labels (last round), label_free_score, seconds (stages that were reused
        cost nothing) a ``_mean`` and an ``_sd`` (sample standard deviation). NaN where no run knows the figure, or
        there is one run alone. Rows are sorted by dataset, paradigm, the order of the methods, and what is learned.

    Raises:
        UserError: For a folder without a readable ``metrics.json``.
    """
    runs = runs_frame(run_folders, facts_of)
    rows = []
    kinds = runs.groupby(["dataset", "paradigm", "rank", "method", "learned", "settings"], sort=True)
    for key, same in kinds:
        dataset, paradigm, _, method, learned, settings = key
        names = {"dataset": dataset, "paradigm": paradigm, "method": method, "learned": learned, "settings": settings}
        seeds = ", ".join(sorted(same["seed"], key=lambda seed: (len(seed), seed)))
        spread = {
            f"{figure}_{part}": value
            for figure in _FIGURES
            for part, value in (("mean", same[figure].mean()), ("sd", same[figure].std(ddof=1)))
        }
        rows.append(names | {"seeds": seeds} | spread)
    columns = [*_SAME, "settings", "seeds", *(f"{figure}_{part}" for figure in _FIGURES for part in ("mean", "sd"))]
    frame = pd.DataFrame(rows, columns=columns)
    if len(frame):
        # What tells a row from its namesakes is known when all of them are there.
        frame["settings"] = frame.groupby(_SAME)["settings"].transform(lambda same: _differences(list(same)))
    return frame


def runs_frame(run_folders: Iterable[str | Path | Folder], facts_of: FactsOf = no_facts) -> pd.DataFrame:
    """One row per run: dataset, paradigm, method, learned, rank, settings (JSON), seed, and its figures.

    Of runs that repeat the same settings and seed only the one named last is there. See `compare`.
    """
    rows = []
    for folder in run_folders:
        run = read_summary(open_run(folder))
        rows.append(_names(run, facts_of(run.config, run.metrics)) | _figures(run.metrics))
    columns = [*_SAME, "rank", "settings", "seed", *_FIGURES]
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(_FIGURES, float))
    return frame.drop_duplicates([*_SAME, "settings", "seed"], keep="last")


def _names(run: RunRecord, facts: RunFacts) -> dict[str, Any]:
    settings = {
        key: value
        for key, value in flat_settings(facts.settings_that_matter(run.config)).items()
        if key not in _INDIFFERENT and not key.startswith(_INDIFFERENT_GROUPS)
    }
    return {
        "dataset": str(run.metrics.get("dataset", "?")),
        "paradigm": str(run.metrics.get("paradigm", "?")),
        "learned": facts.learned or "–",
        "method": str(run.metrics.get("method", run.config.get("method", "?"))),
        "rank": facts.rank,
        "settings": json.dumps(settings, sort_keys=True, default=str),
        "seed": _repetition(run),
    }


def _repetition(run: RunRecord) -> str:
    seed = str(run.metrics.get("seed", run.config.get("seed", "?")))
    split_seed = group(run.config, "data").get("split_seed")
    return f"{seed}/{split_seed}" if run.metrics.get("paradigm") == "trzsl" and split_seed is not None else seed


def _figures(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    main = "harmonic_mean" if metrics.get("paradigm") == "trzsl" else "top1"
    before, after = _accuracy(metrics, "zero_shot", main), _accuracy(metrics, "adapted", main)
    return {
        "zero_shot": before,
        "adapted": after,
        "delta": None if after is None or before is None else after - before,
        "unguarded": _accuracy(metrics, "unguarded", main),
        "seen": _accuracy(metrics, "adapted", "seen"),
        "unseen": _accuracy(metrics, "adapted", "unseen"),
        "harmonic_mean": _accuracy(metrics, "adapted", "harmonic_mean"),
        "pseudo_labels": number(group(metrics, "pseudo_labels").get("accuracy")),
        "label_free_score": number(metrics.get("label_free_score")),
        "seconds": _seconds(metrics),
    }


def _accuracy(metrics: Mapping[str, Any], part: str, key: str) -> float | None:
    """A figure of one part; the adapted TRZSL figures may also stand at the top."""
    figures = group(metrics, part)
    return number(metrics.get(key)) if part == "adapted" and key not in figures else number(figures.get(key))


def _seconds(metrics: Mapping[str, Any]) -> float | None:
    stages = [entry for entry in group(metrics, "stages").values() if isinstance(entry, dict)]
    spent = [number(entry.get("seconds")) for entry in stages if not entry.get("reused")]
    spent.append(number(group(metrics, "train").get("seconds")))
    known = [seconds for seconds in spent if seconds is not None]
    return sum(known) if known else None


def _differences(settings: list[str]) -> list[str]:
    """For rows that are alike but for their settings (JSON): those that differ, such as ``cpl.alpha=0.9``."""
    trees: list[dict[str, Any]] = [json.loads(text) for text in settings]
    keys = sorted({key for tree in trees for key in tree})
    told = [key for key in keys if len({json.dumps(tree.get(key)) for tree in trees}) > 1]
    return [" ".join(f"{key}={tree.get(key)}" for key in told) for tree in trees]


def format_table(comparison: pd.DataFrame) -> str:
    """The comparison as aligned text, for a terminal."""
    head, *body = _cells(comparison)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in head:
        table.add_column(Text(title), no_wrap=True)
    for line in body:
        table.add_row(*(Text(cell) for cell in line))
    sink = io.StringIO()
    Console(file=sink, width=_WIDEST, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines())


def format_markdown(comparison: pd.DataFrame) -> str:
    """The comparison as a markdown table."""
    head, *body = ([_markdown(cell) for cell in line] for line in _cells(comparison))
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def format_csv(comparison: pd.DataFrame) -> str:
    """The comparison as CSV: every column, means and standard deviations apart, full precision."""
    words = comparison.select_dtypes(exclude="number").columns
    text: str = comparison.assign(**{name: comparison[name].map(_plain) for name in words}).to_csv(
        index=False, lineterminator="\n"
    )
    return text


def write_tables(comparison: pd.DataFrame, path: str | Path) -> list[str]:
    """Writes ``PATH.md`` and ``PATH.csv`` (an ending .md or .csv of the path is dropped) and returns both paths."""
    parent, slash, name = str(path).removesuffix(".md").removesuffix(".csv").rpartition("/")
    folder = Folder(parent + slash or ".", setting="output")
    write_text(folder, f"{name}.md", format_markdown(comparison))
    write_text(folder, f"{name}.csv", format_csv(comparison))
    return [folder.file(f"{name}.md"), folder.file(f"{name}.csv")]


def _cells(comparison: pd.DataFrame) -> list[list[str]]:
    """Head and lines of the table; columns that hold nothing are left out."""
    rows: list[dict[str, Any]] = comparison.to_dict("records")
    trzsl = any(row["paradigm"] == "trzsl" for row in rows)
    guarded = any(row["unguarded_mean"] != row["adapted_mean"] for row in rows if not pd.isna(row["unguarded_mean"]))
    unlabelled = any(pd.isna(row["adapted_mean"]) for row in rows)
    columns: list[tuple[str, list[str]]] = [(name, [row[name] for row in rows]) for name in (*_SAME, "settings")]
    columns += [
        ("seeds", [row["seeds"] for row in rows]),
        ("zero-shot %", [_shown(row, "zero_shot") for row in rows]),
        ("adapted %", [_shown(row, "adapted") for row in rows]),
        ("change", [_shown(row, "delta", sign="+") for row in rows]),
        ("without guard %", [_shown(row, "unguarded") for row in rows if guarded]),
        ("seen %", [_shown(row, "seen") for row in rows if trzsl]),
        ("unseen %", [_shown(row, "unseen") for row in rows if trzsl]),
        ("harmonic mean %", [_shown(row, "harmonic_mean") for row in rows if trzsl]),
        ("pseudo-labels %", [_shown(row, "pseudo_labels") for row in rows]),
        ("label-free score", [_shown(row, "label_free_score", digits=3) for row in rows if unlabelled]),
        ("time", [_shown(row, "seconds", digits=0, unit=" s") for row in rows]),
    ]
    kept = [(title, cells) for title, cells in columns if any(cell not in ("", "–") for cell in cells)]
    return [[title for title, _ in kept], *([_plain(cells[i]) for _, cells in kept] for i in range(len(rows)))]


def _shown(row: Mapping[str, Any], figure: str, digits: int = 1, sign: str = "", unit: str = "") -> str:
    """``63.4 ± 1.2``, or the mean alone."""
    mean, sd = row[f"{figure}_mean"], row[f"{figure}_sd"]
    if pd.isna(mean):
        return "–"
    return f"{mean:{sign}.{digits}f}" + ("" if pd.isna(sd) else f" ± {sd:.{digits}f}") + unit


def _plain(text: str) -> str:
    """Text without control characters, which could steer a terminal or break a line."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _markdown(cell: str) -> str:
    escaped = cell.replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\").replace("|", "\\|")
    return escaped.replace("`", "\\`").replace("*", "\\*").replace("[", "\\[")
