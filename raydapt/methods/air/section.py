"""The report's sections on AiR: what the synthetic images judge alone, and the images themselves."""

from typing import Any

from raydapt.report.classes import class_names_of
from raydapt.report.gallery import gallery_cards
from raydapt.report.numbers import format_count, format_number
from raydapt.report.run_files import RunRecord, group, number
from raydapt.report.sections import Column, Section, Table, Thumbnail

_CLASSIFIERS = ("text", "images", "both")


def sections(run: RunRecord) -> list[Section]:
    """From ``rounds`` and ``synthetic`` of metrics.json and ``synthetic.parquet``; none where there is none of them."""
    return [section for section in (_rounds(run), _images(run)) if section is not None]


def _rounds(run: RunRecord) -> Section | None:
    rows = []
    for i, entry in enumerate(run.metrics.get("rounds") or [], start=1):
        right = group(entry, "classifiers") or group(entry, "judges")  # the name in folders of earlier releases
        rows.append((i, *(number(right.get(name)) for name in _CLASSIFIERS)))
    if all(value is None for row in rows for value in row[1:]):
        return None
    of = "Share of all unlabelled images that {} takes for their true class; needs labels."
    table = Table(
        columns=[
            Column("round", "Round of pseudo-labels.", "count"),
            Column("text alone right %", of.format("the text classifier alone"), "percent"),
            Column("synthetic images alone right %", of.format("nearness to synthetic images alone"), "percent"),
            Column("both right %", of.format("the fusion of both, which gives the pseudo-labels,"), "percent"),
        ],
        rows=rows,
    )
    return Section(anchor="fusion", title="Text and synthetic images as classifiers", blocks=[table])


def _images(run: RunRecord) -> Section | None:
    table, made = run.table("synthetic.parquet"), group(run.metrics, "synthetic")
    if table is None or not table.num_rows:
        return None
    rows = table.to_pylist()
    real = gallery_cards(run.gallery, run.predictions, class_names_of(run))["confident"]
    accepted = {str(entry.get("name")): number(entry.get("accepted")) for entry in made.get("per_class") or []}
    lines = []
    for name in dict.fromkeys(str(row["class"]) for row in rows):
        own = [
            Thumbnail(image=row["image"] or b"", alt=f"synthetic image of {name}")
            for row in rows
            if str(row["class"]) == name
        ]
        beside = [Thumbnail(image=card.image, alt=card.path) for card in real if card.predicted == name]
        lines.append((name, accepted.get(name), own, beside))
    columns = [
        Column("class", "The class that the images were made of."),
        Column("accepted %", "Share of the class's synthetic images that zero-shot takes for it.", "percent", 0),
        Column("synthetic", "The first ones made, not picked.", "images"),
        Column("real", "Real images that the adapted model is surest of, among those shown below.", "images"),
    ]
    return Section(
        anchor="synthetic", title="Synthetic images", note=_note(made), blocks=[Table(columns=columns, rows=lines)]
    )


def _note(made: dict[str, Any]) -> str:
    text = f"{format_count(number(made.get('images')))} images. Zero-shot takes "
    text += f"{format_number(number(made.get('accepted')))} % of them for the class that they were made of"
    if made.get("accepted_in_top") is not None:
        text += (
            f", and ranks it among its first {made.get('top')} for {format_number(number(made['accepted_in_top']))} %"
        )
    return text + "."
