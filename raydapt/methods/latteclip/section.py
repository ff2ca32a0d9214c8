"""The report's section on LatteCLIP: captions beside their images, weights of the texts, prototypes that moved."""

from dataclasses import dataclass
from typing import Any

from raydapt.report.gallery import image_uri
from raydapt.report.run_files import RunRecord, group, number

MOST_EPOCHS, MOST_CLASSES = 12, 24


@dataclass(frozen=True, kw_only=True)
class CaptionCard:
    """One training image and what was said of it and of its group."""

    uri: str
    path: str
    zero_shot: str
    image_caption: str | None
    group_caption: str | None


@dataclass(frozen=True, kw_only=True)
class LatteclipView:
    """What the template shows; every list may be empty.

    Attributes:
        epochs: Epoch, percent of the weight of template, image and group captions, mean and largest 1 - cosine of a
            prototype to its start; a few epochs out of many.
        classes: Class and 1 - cosine at the end, the largest first.
        kinds: What was described, captions, missing ones, percent that name the zero-shot class, and any class.
        cards: Images with captions.
    """

    epochs: list[tuple[int, list[float], float | None, float | None]]
    classes: list[tuple[str, float | None]]
    kinds: list[tuple[str, int, int, float | None, float | None]]
    cards: list[CaptionCard]


def latteclip_view(run: RunRecord) -> LatteclipView | None:
    """The section's content; None for other methods."""
    stored = group(run.metrics, "latteclip")
    if not stored:
        return None
    epochs = [
        (
            int(row["epoch"]),
            [100 * (number(row.get(source)) or 0.0) for source in ("template", "image", "group")],
            number(row.get("drift")),
            number(row.get("largest_drift")),
        )
        for row in stored.get("epochs") or []
    ]
    step = max(1, -(-len(epochs) // MOST_EPOCHS))
    classes = [(str(row["class"]), number(row.get("drift"))) for row in stored.get("classes") or []]
    classes.sort(key=lambda row: -(row[1] or 0.0))
    return LatteclipView(
        epochs=epochs[::-1][::step][::-1],
        classes=classes[:MOST_CLASSES],
        kinds=[
            (kind, int(row["captions"]), int(row["missing"]), number(row["name_class"]), number(row["name_any"]))
            for kind, row in group(stored, "captions").items()
        ],
        cards=[] if run.captions is None else [card for row in run.captions.to_pylist() if (card := _card(row))],
    )


def _card(row: dict[str, Any]) -> CaptionCard | None:
    uri = image_uri(row["image"] or b"")
    if uri is None:
        return None
    return CaptionCard(
        uri=uri,
        path=str(row["path"]),
        zero_shot=str(row["zero_shot"]),
        image_caption=row["image_caption"],
        group_caption=row["group_caption"],
    )
