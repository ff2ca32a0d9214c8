"""The report's section on LatteCLIP: captions beside their images, weights of the texts, prototypes that moved."""

from typing import Any

from raydapt.report.run_files import RunRecord, group, number
from raydapt.report.sections import Block, Card, Cards, Column, Line, Section, Table

MOST_EPOCHS, MOST_CLASSES = 12, 24
_SOURCES = ("template", "image", "group")
_LEARNED = {
    "full": "both towers of CLIP",
    "ln": "LayerNorms of both towers",
    "lora": "adapters in both towers",
    "text_prompt": "text prompt",
    "visual_prompt": "visual prompt",
    "residual": "residual of the class embeddings",
}


def learned(tune: str, towers: str) -> str:
    """What is learned, in words, by the settings ``latteclip.tune`` and ``latteclip.towers``."""
    words = _LEARNED.get(tune, tune)
    return words.replace("both towers", "the image tower") if towers == "image" else words


def sections(run: RunRecord) -> list[Section]:
    """From the group ``latteclip`` of metrics.json and ``captions.parquet``; none where there is no such group."""
    stored = group(run.metrics, "latteclip")
    found = (_kinds(stored), _captions(run), _epochs(stored), _classes(stored))
    blocks = [block for block in found if block is not None]
    if not stored or not blocks:
        return []
    return [Section(anchor="captions", title="Texts and prototypes", blocks=blocks)]


def _kinds(stored: dict[str, Any]) -> Block | None:
    rows = [
        (kind, int(row["captions"]), int(row["missing"]), number(row.get("name_class")), number(row.get("name_any")))
        for kind, row in group(stored, "captions").items()
    ]
    if not rows:
        return None
    return Table(
        caption="Captions",
        note="Of the training images. A caption names a class when all words of one of its wordings occur; the class "
        "is the one of the zero-shot model, since no label is looked at.",
        columns=[
            Column("of", "What was described: single images, or groups of four of one zero-shot class."),
            Column("captions", "Training images that have one.", "count"),
            Column("missing", "Training images that have none.", "count"),
            Column("name their class %", "Share of the captions that name the image's zero-shot class.", "percent"),
            Column("name any class %", "Share of the captions that name at least one class.", "percent"),
        ],
        rows=rows,
    )


def _captions(run: RunRecord) -> Block | None:
    table = run.table("captions.parquet")
    if table is None or not table.num_rows:
        return None
    cards = []
    for row in table.to_pylist():
        lines = [Line(text=row["image_caption"])] if row["image_caption"] else []
        lines += [Line(text=row["group_caption"], label="group")] if row["group_caption"] else []
        cards.append(Card(image=row["image"] or b"", alt=str(row["path"]), title=str(row["zero_shot"]), lines=lines))
    return Cards(note="Training images, their zero-shot class, and what was said of them.", cards=cards)


def _epochs(stored: dict[str, Any]) -> Block | None:
    rows = [
        (
            int(row["epoch"]),
            *(100 * (number(row.get(source)) or 0.0) for source in _SOURCES),
            number(row.get("drift")),
            number(row.get("largest_drift")),
        )
        for row in stored.get("epochs") or []
    ]
    if not rows:
        return None
    step = max(1, -(-len(rows) // MOST_EPOCHS))
    share = "Mean share of the mixture of texts that the {} had in this epoch."
    return Table(
        caption="Weights of the texts, movement of the prototypes",
        note="A prototype stands for a class; it moves towards the mixture of the texts of its images.",
        columns=[
            Column("epoch", "Epochs learned; a few out of many.", "count"),
            Column("class prompt %", share.format("prompt of the class"), "percent"),
            Column("image caption %", share.format("caption of the image"), "percent"),
            Column("group caption %", share.format("caption of the group"), "percent"),
            Column("mean movement", "1 − cosine between a prototype and where it started, mean over classes.",
                   "number", 4),
            Column("largest", "The same of the class whose prototype moved most.", "number", 4),
        ],
        rows=rows[::-1][::step][::-1],
    )  # fmt: skip


def _classes(stored: dict[str, Any]) -> Block | None:
    rows = [(str(row["class"]), number(row.get("drift"))) for row in stored.get("classes") or []]
    if not rows:
        return None
    rows.sort(key=lambda row: -(row[1] or 0.0))
    return Table(
        note="The classes whose prototypes moved most.",
        columns=[
            Column("class", "The class of the prototype."),
            Column("movement", "1 − cosine between the prototype at the end and where it started.", "number", 4),
        ],
        rows=rows[:MOST_CLASSES],
    )
