"""The report's headline, warnings, rounds, timings and settings, as plain data for the template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydapt.report.classes import ClassRow, Predictions
from raydapt.report.facts import RunFacts
from raydapt.report.run_files import RunRecord, flat_settings, group, number

SMALL_CLASS = 10
MOST_NAMES = 6


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure before and after, in percent (or none)."""

    title: str
    before: float | None
    after: float | None

    @property
    def delta(self) -> float | None:
        """Points gained."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What the run comes to.

    Attributes:
        main: The protocol's figure (harmonic mean in TRZSL, else top-1); its values are None without labels.
        margin: Half the 95 % interval of the change in top-1, in points, from the paired predictions.
        repaired: Images that zero-shot has wrong and the adapted model right; None without labels.
        broken: The opposite.
        changed: Images whose class is another than before; None without predictions.
    """

    main: Figure
    others: list[Figure]
    images: int | None = None
    margin: float | None = None
    repaired: int | None = None
    broken: int | None = None
    changed: int | None = None
    unlabelled: list[Figure] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a run concludes of itself without labels: a word, a sentence, and what it rests on."""

    verdict: str
    sentence: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of pseudo-labels, in counts of images; accuracies in percent, `candidates` per image."""

    selected: int | None
    accuracy: float | None
    holds_truth: float | None
    unplaced: float | None
    without_candidates: float | None
    candidates: float | None
    classes: int | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One stage, or the training: rows are images."""

    name: str
    rows: int | None
    seconds: float | None
    rows_per_s: float | None
    reused: bool
    model_share: float | None
    share_of_peak: float | None
    share: float = 0.0


def headline(run: RunRecord, predictions: Predictions | None) -> Headline:
    """The figures before and after; see `Headline`."""
    before, after = group(run.metrics, "zero_shot"), group(run.metrics, "adapted")
    titles = {"top1": "Top-1 accuracy", "mean_per_class": "Mean per-class accuracy", "harmonic_mean": "Harmonic mean"}
    titles |= {"seen": "Seen classes", "unseen": "Unseen classes"}
    figures = {
        key: Figure(title=title, before=number(before.get(key)), after=_after(run, after, key))
        for key, title in titles.items()
    }
    first = "harmonic_mean" if figures["harmonic_mean"].after is not None else "top1"
    others = [f for key, f in figures.items() if key != first and (f.before is not None or f.after is not None)]
    evaluation = group(run.metrics, "evaluation")
    images = number(evaluation.get("labelled_images")) or number(evaluation.get("images"))
    facts: dict[str, Any] = {"main": figures[first], "others": others}
    facts["images"] = int(images) if images else (None if predictions is None else len(predictions.after_N))
    if predictions is not None:
        facts |= _paired(predictions)
    return Headline(**facts)


def _after(run: RunRecord, after: dict[str, Any], key: str) -> float | None:
    """TRZSL figures may also stand at the top of the metrics."""
    return number(after.get(key)) if key in after else number(run.metrics.get(key))


def _paired(predictions: Predictions) -> dict[str, Any]:
    """What changed image by image; the interval is that of the difference of paired proportions."""
    before, after = predictions.before_confidence_N, predictions.confidence_N
    used = [len(np.unique(guess_N[guess_N >= 0])) for guess_N in (predictions.before_N, predictions.after_N)]
    facts: dict[str, Any] = {
        "changed": int((predictions.before_N != predictions.after_N).sum()),
        "unlabelled": [
            Figure(title="Mean confidence", before=_percent(before), after=_percent(after)),
            Figure(title="Classes ever predicted", before=used[0], after=used[1]),
        ],
    }
    known = predictions.truth_N >= 0
    if known.any():
        was, now = (g[known] == predictions.truth_N[known] for g in (predictions.before_N, predictions.after_N))
        repaired, broken, images = int((~was & now).sum()), int((was & ~now).sum()), int(known.sum())
        variance = (repaired + broken - (repaired - broken) ** 2 / images) / images**2
        facts |= {"repaired": repaired, "broken": broken, "margin": 196.0 * math.sqrt(max(variance, 0.0))}
    return facts


def _percent(share_N: "np.ndarray[Any, np.dtype[np.float64]]") -> float | None:
    return number(100.0 * float(share_N.mean()))


def warnings_of(run: RunRecord, rows: Sequence[ClassRow], head: Headline, rounds: Sequence[Round]) -> list[str]:
    """What a reader must know before believing the figures; plain sentences, the gravest first."""
    found = [str(note) for note in run.metrics.get("notes") or []]
    if head.main.after is None and not group(run.metrics, "labels").get("labelled"):
        found.append("The images have no labels, so there are no accuracies; the figures that need none are shown.")
    if head.main.delta is not None and head.main.delta < 0:
        found.append("The adapted model is worse than zero-shot on these images: prefer zero-shot or another method.")
    if group(run.metrics, "evaluation").get("transductive"):
        found.append("Transductive evaluation: the model was adapted on the very images it is evaluated on.")
    errors = {str(reason): int(count) for reason, count in group(run.metrics, "errors").items() if number(count)}
    if errors:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in errors.items())
        found.append(f"{sum(errors.values()):,} input rows could not be read and were left out ({reasons}).")
    found += _class_warnings(rows)
    if rounds and rounds[-1].classes is not None and rounds[-1].classes < len(rows):
        missing = len(rows) - rounds[-1].classes
        # In TRZSL the seen classes are labelled and get no pseudo-labels by design.
        if run.metrics.get("paradigm") != "trzsl":
            found.append(f"{missing:,} of {len(rows):,} classes have no pseudo-labelled image in the last round.")
    return found


def _class_warnings(rows: Sequence[ClassRow]) -> list[str]:
    found = []
    never = [row.name for row in rows if row.after == 0]
    if never:
        found.append(f"Never predicted: {_listing(never)}.")
    collapsed = [
        row.name for row in rows if row.delta is not None and row.delta <= -20 and (row.images or 0) >= SMALL_CLASS
    ]
    if collapsed:
        found.append(f"Lost 20 points or more: {_listing(collapsed)}.")
    small = [row.name for row in rows if row.images is not None and row.images < SMALL_CLASS]
    if small and any(row.images for row in rows):
        found.append(f"Fewer than {SMALL_CLASS} evaluated images, so their figures say little: {_listing(small)}.")
    return found


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(f"“{name}”" for name in names[:MOST_NAMES]) + more


def rounds_of(run: RunRecord) -> list[Round]:
    """The rounds of the metrics, with what the pseudo-labels themselves tell (candidates, classes)."""
    details = {} if run.pseudo_labels is None else _round_details(run.pseudo_labels)
    found = []
    for i, entry in enumerate(run.metrics.get("rounds") or []):
        place = int(entry.get("round", i))
        selected = number(entry.get("selected"))
        candidates, classes = details.get(place, (None, None))
        found.append(
            Round(
                selected=None if selected is None else int(selected),
                accuracy=number(entry.get("accuracy")),
                holds_truth=number(entry.get("holds_truth")),
                # Folders of earlier releases call them otherwise.
                unplaced=number(entry.get("unplaced", entry.get("waiting"))),
                without_candidates=number(entry.get("without_candidates", entry.get("dropped"))),
                candidates=candidates,
                classes=classes,
            )
        )
    return found


def _round_details(table: pa.Table) -> dict[int, tuple[float, int]]:
    """For every round: mean number of candidate classes of an image, and number of classes that occur."""
    details = {}
    for place in pc.unique(table["round"]).to_pylist():
        classes = table.filter(pc.equal(table["round"], place))["classes"]
        used = pc.count_distinct(pc.list_flatten(classes)).as_py()
        details[int(place)] = (float(pc.mean(pc.list_value_length(classes)).as_py() or 0.0), int(used))
    return details


def timings(run: RunRecord) -> list[Timing]:
    """The stages in the order of the metrics, then training; with each one's share of the time."""
    found = []
    for name, entry in group(run.metrics, "stages").items():
        if isinstance(entry, dict):
            rows = number(entry.get("rows"))
            found.append(
                {"name": str(name), "rows": None if rows is None else int(rows)} | _speeds(entry, "rows_per_s")
            )
    train = group(run.metrics, "train")
    if number(train.get("seconds")):
        workers = number(train.get("workers"))
        name = "training" if not workers else f"training ({workers:.0f} worker{'s' if workers > 1 else ''})"
        found.append({"name": name, "rows": None} | _speeds(train, "images_per_s"))
    longest = max([entry["seconds"] or 0.0 for entry in found], default=0.0)
    return [Timing(**entry, share=(entry["seconds"] or 0.0) / longest if longest else 0.0) for entry in found]


def _speeds(entry: dict[str, Any], rate: str) -> dict[str, Any]:
    share, of_peak = number(entry.get("model_share")), number(entry.get("share_of_peak"))
    return {
        "seconds": number(entry.get("seconds")),
        "rows_per_s": number(entry.get(rate)),
        "reused": bool(entry.get("reused")),
        "model_share": None if share is None else 100.0 * share,
        "share_of_peak": None if of_peak is None else 100.0 * of_peak,
    }


def verdict_of(run: RunRecord) -> Verdict | None:
    """The group ``verdict`` of metrics.json; None where a run has none."""
    stored = group(run.metrics, "verdict")
    if not stored:
        return None
    evidence = {
        name: f"{value:.4g}" if isinstance(value, float) else value
        for name, value in flat_settings(group(stored, "evidence")).items()
    }
    return Verdict(verdict=str(stored.get("verdict", "")), sentence=str(stored.get("sentence", "")), evidence=evidence)


def settings_of(run: RunRecord, facts: RunFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that are not the defaults (empty where nobody knows these), and all that the run goes by."""
    everything = flat_settings(facts.settings_that_matter(run.config))
    defaults = flat_settings(dict(facts.defaults))
    different = {k: v for k, v in everything.items() if k not in defaults or defaults[k] != v} if defaults else {}
    return different, everything
