"""Compares runs: one row per dataset, paradigm, prompt and method, with mean and spread over the seeds."""

import csv
import io
import json
import statistics
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydapt.report.run_files import RunRecord, flat_settings, group, number, open_run, read_summary, write_text
from raydapt.settings.config import METHODS
from raydapt.store.folder import Folder

# Settings that say where and how fast, or which repetition: runs that differ in these alone are one row.
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
}
_INDIFFERENT |= {f"train.{name}" for name in ("workers", "gpus_per_worker", "cpus_per_worker", "gradient_accumulation")}
_INDIFFERENT |= {f"train.{name}" for name in ("checkpoint_every_s", "max_failures", "predict_batch_size", "precision")}
_INDIFFERENT_GROUPS = ("ray.", "features.")
_NAMES = ("dataset", "paradigm", "prompt", "method", "settings")
_FIGURES = ("zero_shot", "adapted", "delta", "seen", "unseen", "harmonic_mean")
_OTHER_FIGURES = ("pseudo_labels", "label_free_score", "seconds")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation over repetitions; `sd` is None for a single one."""

    mean: float
    sd: float | None = None

    def text(self, digits: int = 1, sign: str = "") -> str:
        """``63.4 ± 1.2``, or the mean alone."""
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.sd is None else f"{mean} ± {self.sd:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class CompareRow:
    """One row of the comparison; accuracies in percent, None where no run of the row knows the figure.

    Attributes:
        settings: Settings in which rows of the same dataset, paradigm, prompt and method differ; else empty.
        seeds: The repetitions; in TRZSL ``seed/split_seed`` where the division of the classes varies.
        zero_shot: Top-1 before; in TRZSL the harmonic mean, as for `adapted` and `delta`.
        delta: Points gained, run by run.
        seen: TRZSL: accuracy on seen classes after adaptation.
        unseen: TRZSL: the same on unseen classes.
        pseudo_labels: Accuracy of the last round's pseudo-labels.
        label_free_score: The score that needs no labels.
        seconds: Time of stages and training; reused stages count nothing.
    """

    dataset: str
    paradigm: str
    prompt: str
    method: str
    settings: str
    seeds: tuple[str, ...]
    zero_shot: Spread | None
    adapted: Spread | None
    delta: Spread | None
    seen: Spread | None
    unseen: Spread | None
    harmonic_mean: Spread | None
    pseudo_labels: Spread | None
    label_free_score: Spread | None
    seconds: Spread | None


@dataclass(frozen=True)
class _Kind:
    """What makes runs comparable as repetitions; `settings` is JSON of the remaining settings."""

    dataset: str
    paradigm: str
    prompt: str
    method: str
    settings: str


def compare(run_folders: Iterable[str | Path | Folder]) -> list[CompareRow]:
    """Reads the runs and groups them over their seeds.

    Of runs that repeat the same settings and seed the one named last counts. Rows are sorted by dataset,
    paradigm, prompt and method (in the order of `raydapt.settings.config.METHODS`).

    Raises:
        UserError: For a folder without a readable ``metrics.json``.
    """
    kinds: dict[_Kind, dict[str, RunRecord]] = {}
    for folder in run_folders:
        run = read_summary(open_run(folder))
        kinds.setdefault(_kind(run), {})[_repetition(run)] = run
    order = {name: i for i, name in enumerate(METHODS)}
    ranked = sorted(
        kinds, key=lambda k: (k.dataset, k.paradigm, k.prompt, order.get(k.method, len(order)), k.method, k.settings)
    )
    return [_row(kind, _difference(kind, kinds), kinds[kind]) for kind in ranked]


def _kind(run: RunRecord) -> _Kind:
    method = str(run.metrics.get("method", run.config.get("method", "?")))
    prompt = "–" if method in ("zero_shot", "ensemble") else str(group(run.config, "model").get("prompt", "–"))
    others = tuple(f"{name}." for name in METHODS if name != method)
    # A classifier without training has no training settings, and no prompt was learned.
    others += ("train.",) if method in ("zero_shot", "ensemble") else ()
    settings = {
        key: value
        for key, value in flat_settings(run.config).items()
        if key not in _INDIFFERENT and not key.startswith(_INDIFFERENT_GROUPS + others)
    }
    return _Kind(
        dataset=str(run.metrics.get("dataset", "?")),
        paradigm=str(run.metrics.get("paradigm", "?")),
        prompt=prompt,
        method=method,
        settings=json.dumps(settings, sort_keys=True, default=str),
    )


def _repetition(run: RunRecord) -> str:
    seed = str(run.metrics.get("seed", run.config.get("seed", "?")))
    split_seed = group(run.config, "data").get("split_seed")
    return f"{seed}/{split_seed}" if run.metrics.get("paradigm") == "trzsl" and split_seed is not None else seed


def _difference(kind: _Kind, kinds: Iterable[_Kind]) -> str:
    """The settings that tell this row from its namesakes, such as ``cpl.alpha=0.9 train.epochs=20``."""
    same = [
        json.loads(other.settings)
        for other in kinds
        if (other.dataset, other.paradigm, other.prompt, other.method)
        == (kind.dataset, kind.paradigm, kind.prompt, kind.method)
    ]
    mine: dict[str, Any] = json.loads(kind.settings)
    keys = sorted({key for settings in same for key in settings})
    return " ".join(
        f"{key}={mine.get(key)}" for key in keys if len({json.dumps(settings.get(key)) for settings in same}) > 1
    )


def _row(kind: _Kind, difference: str, runs: Mapping[str, RunRecord]) -> CompareRow:
    metrics = [run.metrics for run in runs.values()]
    main = "harmonic_mean" if kind.paradigm == "trzsl" else "top1"
    before = [_accuracy(m, "zero_shot", main) for m in metrics]
    after = [_accuracy(m, "adapted", main) for m in metrics]
    return CompareRow(
        dataset=kind.dataset,
        paradigm=kind.paradigm,
        prompt=kind.prompt,
        method=kind.method,
        settings=difference,
        seeds=tuple(sorted(runs, key=_seed_order)),
        zero_shot=_spread(before),
        adapted=_spread(after),
        delta=_spread([None if a is None or b is None else a - b for a, b in zip(after, before, strict=True)]),
        seen=_spread([_accuracy(m, "adapted", "seen") for m in metrics]),
        unseen=_spread([_accuracy(m, "adapted", "unseen") for m in metrics]),
        harmonic_mean=_spread([_accuracy(m, "adapted", "harmonic_mean") for m in metrics]),
        pseudo_labels=_spread([number(group(m, "pseudo_labels").get("accuracy")) for m in metrics]),
        label_free_score=_spread([number(m.get("label_free_score")) for m in metrics]),
        seconds=_spread([_seconds(m) for m in metrics]),
    )


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


def _seed_order(seed: str) -> tuple[int, str]:
    return (len(seed), seed)


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(mean=statistics.fmean(known), sd=statistics.stdev(known) if len(known) > 1 else None)


def format_table(rows: Sequence[CompareRow]) -> str:
    """The comparison as aligned text, for a terminal."""
    head, *body = _cells(rows)
    widths = [max(_width(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [
        "  ".join(_pad(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def format_markdown(rows: Sequence[CompareRow]) -> str:
    """The comparison as a markdown table."""
    head, *body = ([_markdown(cell) for cell in line] for line in _cells(rows))
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def format_csv(rows: Sequence[CompareRow]) -> str:
    """The comparison as CSV: every column, means and standard deviations apart, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = _FIGURES + _OTHER_FIGURES
    writer.writerow([*_NAMES, "seeds", *(f"{figure}_{part}" for figure in figures for part in ("mean", "sd"))])
    for row in rows:
        spreads = [getattr(row, figure) or Spread(mean=float("nan")) for figure in figures]
        values = [value for spread in spreads for value in (spread.mean, spread.sd)]
        shown = ["" if value is None or value != value else repr(value) for value in values]
        writer.writerow([*(_plain(getattr(row, name)) for name in _NAMES), " ".join(row.seeds), *shown])
    return text.getvalue()


def write_tables(rows: Sequence[CompareRow], path: str | Path) -> list[str]:
    """Writes ``PATH.md`` and ``PATH.csv`` (an ending .md or .csv of the path is dropped) and returns both paths."""
    parent, slash, name = str(path).removesuffix(".md").removesuffix(".csv").rpartition("/")
    folder = Folder(parent + slash or ".", setting="output")
    write_text(folder, f"{name}.md", format_markdown(rows))
    write_text(folder, f"{name}.csv", format_csv(rows))
    return [folder.file(f"{name}.md"), folder.file(f"{name}.csv")]


def _cells(rows: Sequence[CompareRow]) -> list[list[str]]:
    """Head and lines of the table; columns that hold nothing are left out."""
    trzsl = any(row.paradigm == "trzsl" for row in rows)
    unlabelled = any(row.adapted is None for row in rows)
    columns: list[tuple[str, list[str]]] = [
        ("dataset", [row.dataset for row in rows]),
        ("paradigm", [row.paradigm for row in rows]),
        ("prompt", [row.prompt for row in rows]),
        ("method", [row.method for row in rows]),
        ("settings", [row.settings for row in rows]),
        ("seeds", [", ".join(row.seeds) for row in rows]),
        ("zero-shot %", [_shown(row.zero_shot) for row in rows]),
        ("adapted %", [_shown(row.adapted) for row in rows]),
        ("change", [_shown(row.delta, sign="+") for row in rows]),
        ("seen %", [_shown(row.seen) for row in rows if trzsl]),
        ("unseen %", [_shown(row.unseen) for row in rows if trzsl]),
        ("harmonic mean %", [_shown(row.harmonic_mean) for row in rows if trzsl]),
        ("pseudo-labels %", [_shown(row.pseudo_labels) for row in rows]),
        ("label-free score", [_shown(row.label_free_score, digits=3) for row in rows if unlabelled]),
        ("time", [_shown(row.seconds, digits=0, unit=" s") for row in rows]),
    ]
    kept = [(title, cells) for title, cells in columns if any(cell not in ("", "–") for cell in cells)]
    return [[title for title, _ in kept], *([_plain(cells[i]) for _, cells in kept] for i in range(len(rows)))]


def _shown(spread: Spread | None, digits: int = 1, sign: str = "", unit: str = "") -> str:
    return "–" if spread is None else spread.text(digits, sign) + unit


def _plain(text: str) -> str:
    """Text without control characters, which could steer a terminal or break a line."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _markdown(cell: str) -> str:
    escaped = cell.replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\").replace("|", "\\|")
    return escaped.replace("`", "\\`").replace("*", "\\*").replace("[", "\\[")


def _width(text: str) -> int:
    """Columns that a terminal gives the text."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
