"""The report's gallery: which images to show, and their cards."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydapt.report.classes import truth_column

MOST_CONFIDENT = 48
LARGEST_THUMBNAIL_BYTES = 512 * 1024
_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


@dataclass(frozen=True, kw_only=True)
class GalleryCard:
    """One image (encoded) with what was said of it; confidences in percent."""

    image: bytes
    path: str
    predicted: str
    confidence: float | None
    zero_shot: str
    zero_shot_confidence: float | None
    label: str | None
    right: bool | None


def choose_gallery(
    predictions_table: pa.Table, per_class: int = 3, changed: int = 18, most_confident: int = MOST_CONFIDENT
) -> dict[str, str]:
    """Picks the images that tell most; the choice depends on the table alone.

    The changed ones are those whose class is another than zero-shot's, taken in turn from every new class and
    within it by falling confidence, so that one class cannot fill the gallery. The confident ones are taken
    from the rest in the same way.

    Args:
        predictions_table: Columns id, zero_shot, predicted, confidence.
        per_class: Confident images of each predicted class.
        changed: Changed images in all.
        most_confident: Confident images in all; with many classes not every class gets one.

    Returns:
        ``{id: "changed" | "confident"}``, changed ones first, each in the order to show them.
    """
    ids = np.array(predictions_table["id"].to_pylist(), dtype=object)
    if not len(ids):
        return {}
    _, first = np.unique(ids.astype(str), return_index=True)
    table = predictions_table.take(pa.array(np.sort(first)))
    ids = np.array(table["id"].to_pylist(), dtype=object)
    before = np.array(table["zero_shot"].to_pylist(), dtype=object)
    after = np.array(table["predicted"].to_pylist(), dtype=object)
    sure = table["confidence"].cast(pa.float64()).to_numpy()
    order, _ = _in_turn(after, sure, before != after)
    chosen = {str(ids[i]): "changed" for i in order[:changed]}
    rest = ~np.isin(ids.astype(str), list(chosen)) if chosen else np.ones(len(ids), dtype=bool)
    order, turn = _in_turn(after, sure, rest)
    confident = order[turn < per_class][:most_confident]
    return chosen | {str(ids[i]): "confident" for i in confident}


def _in_turn(
    group_N: NDArray[np.object_], sure_N: NDArray[np.float64], wanted_N: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The wanted rows, every group's surest first, then every group's second …, and the turn of each (0, 1, …)."""
    rows = np.flatnonzero(wanted_N)
    if not len(rows):
        return rows, rows
    _, group_R = np.unique(group_N[rows].astype(str), return_inverse=True)
    by_group = np.lexsort((rows, -sure_N[rows], group_R))
    sorted_R = group_R[by_group]
    starts = np.flatnonzero(np.r_[True, sorted_R[1:] != sorted_R[:-1]])
    turn_R = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    by_turn = np.lexsort((-sure_N[rows[by_group]], turn_R))
    return rows[by_group][by_turn], turn_R[by_turn]


def gallery_cards(
    gallery: pa.Table | None, predictions: pa.Table | None, names: Sequence[str]
) -> dict[str, list[GalleryCard]]:
    """The cards of each kind; images of an unknown format or too large to embed are left out.

    Args:
        gallery: id, image, kind, path; None gives no cards.
        predictions: The table of ``predictions.parquet``.
        names: The class names; a label that is none of them is unknown.
    """
    cards: dict[str, list[GalleryCard]] = {"confident": [], "changed": []}
    if gallery is None or predictions is None:
        return cards
    known, column = set(names), truth_column(predictions)
    wanted = pa.array(gallery["id"].to_pylist(), pa.string())
    said = {row["id"]: row for row in predictions.filter(pc.is_in(predictions["id"], wanted)).to_pylist()}
    for image in gallery.to_pylist():
        row = said.get(image["id"])
        if row is None or image_uri(image["image"] or b"") is None or image["kind"] not in cards:
            continue
        truth = row[column] if row[column] in known else None
        cards[image["kind"]].append(
            GalleryCard(
                image=image["image"],
                path=str(image.get("path") or row.get("path") or image["id"]),
                predicted=str(row["predicted"]),
                confidence=_percent(row["confidence"]),
                zero_shot=str(row["zero_shot"]),
                zero_shot_confidence=_percent(row["zero_shot_confidence"]),
                label=truth,
                right=None if truth is None else truth == row["predicted"],
            )
        )
    return cards


def image_uri(data: bytes) -> str | None:
    """A data: URI of an encoded PNG, JPEG, GIF or WebP, told by its first bytes; None for anything else."""
    if len(data) > LARGEST_THUMBNAIL_BYTES:
        return None
    kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), None)
    if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    return None if kind is None else f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share
