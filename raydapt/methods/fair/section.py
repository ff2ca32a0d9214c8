"""The report's section on FAIR: crops that counted, weights beside correctness, anchors that moved."""

from typing import Any

from raydapt.report.run_files import RunRecord, group, number
from raydapt.report.sections import Block, Card, Cards, Column, Section, Table

MOST_ANCHORS = 12


def sections(run: RunRecord) -> list[Section]:
    """From the group ``alignment`` of metrics.json and ``crops.parquet``; none where there is no such group."""
    stored = group(run.metrics, "alignment")
    blocks = [block for block in (_weights(stored), _anchors(stored), _crops(run)) if block is not None]
    if not stored or not blocks:
        return []
    return [Section(anchor="alignment", title="Crops and anchors", blocks=blocks)]


def _weights(stored: dict[str, Any]) -> Block | None:
    rows = [
        (f"{row['from']:g} to {row['to']:g}", int(row["images"]), number(row.get("accuracy")))
        for row in stored.get("weights") or []
    ]
    if not rows:
        return None
    return Table(
        caption="Weights of pseudo-labels",
        note=f"{int(stored.get('examined') or 0):,} training images under the final model; the weight should be small "
        "where the pseudo-label is wrong.",
        columns=[
            Column("weight", "What an image counts for in the loss, 0 to 1; above the first bound, up to the second."),
            Column("images", "Examined training images with such a weight.", "count"),
            Column("right %", "Share of them whose pseudo-label is the true class; needs labels.", "percent"),
        ],
        rows=rows,
    )


def _anchors(stored: dict[str, Any]) -> Block | None:
    rows = [(str(row["class"]), float(row["degrees"]), str(row["nearest"])) for row in stored.get("anchors") or []]
    if not rows:
        return None
    rows.sort(key=lambda row: -row[1])
    return Table(
        caption="Anchors",
        note="How far the anchor of a class is from the mean of its descriptions; the largest movement first.",
        columns=[
            Column("class", "The class of the anchor."),
            Column("degrees moved", "Angle between the anchor now and where it began.", "number"),
            Column("nearest class now", "The class whose anchor is most like this one: the likeliest confusion."),
        ],
        rows=rows[:MOST_ANCHORS],
    )


def _crops(run: RunRecord) -> Block | None:
    table = run.table("crops.parquet")
    if table is None or not table.num_rows:
        return None
    cards = []
    for row in table.to_pylist():
        kept = sum(weight > 0 for weight in row["weights"])
        alt = f"{row['path']}, {kept} crops kept"
        cards.append(Card(image=row["image"] or b"", alt=alt, title=str(row["predicted"])))
    note = (
        "Crops of training images, below each its pseudo-label: in colour those most like the whole image, which make "
        "the pseudo-label; in grey those left out."
    )
    return Cards(caption="Crops", note=note, cards=cards)
