"""The report's section on FAIR: crops that counted, weights beside correctness, anchors that moved."""

from dataclasses import dataclass
from typing import Any

from raydapt.report.gallery import image_uri
from raydapt.report.run_files import RunRecord, group, number

MOST_ANCHORS = 12


@dataclass(frozen=True, kw_only=True)
class CropCard:
    """One image with its crops outlined."""

    uri: str
    path: str
    predicted: str
    kept: int


@dataclass(frozen=True, kw_only=True)
class AlignmentView:
    """What the template shows; every list may be empty.

    Attributes:
        examined: Training images that were looked at.
        weights: Bounds of the weight, images within them, and the right ones in percent or None.
        anchors: Class, degrees from the start, nearest other class; those that moved most.
        cards: Images with crops.
    """

    examined: int
    weights: list[tuple[str, int, float | None]]
    anchors: list[tuple[str, float, str]]
    cards: list[CropCard]


def alignment_view(run: RunRecord) -> AlignmentView | None:
    """The section's content; None for other methods."""
    stored = group(run.metrics, "alignment")
    if not stored:
        return None
    weights = [
        (f"{row['from']:g} to {row['to']:g}", int(row["images"]), number(row.get("accuracy")))
        for row in stored.get("weights") or []
    ]
    anchors = [(str(row["class"]), float(row["degrees"]), str(row["nearest"])) for row in stored.get("anchors") or []]
    anchors.sort(key=lambda row: -row[1])
    return AlignmentView(
        examined=int(stored.get("examined") or 0),
        weights=weights,
        anchors=anchors[:MOST_ANCHORS],
        cards=[] if run.crops is None else [card for row in run.crops.to_pylist() if (card := _card(row))],
    )


def _card(row: dict[str, Any]) -> CropCard | None:
    uri = image_uri(row["image"] or b"")
    if uri is None:
        return None
    kept = sum(weight > 0 for weight in row["weights"])
    return CropCard(uri=uri, path=str(row["path"]), predicted=str(row["predicted"]), kept=kept)
