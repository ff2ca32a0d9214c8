"""What LatteCLIP's texts and prototypes did, for its report. No label is needed for any of it.

Legend: N training images, C classes, E epochs, K text sources.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, load_captions
from raydapt.artefacts.rows import rows_of
from raydapt.data.reread import thumbnails
from raydapt.methods.best_classes import best_classes
from raydapt.methods.latteclip.method import SOURCES
from raydapt.methods.spec import FinishedRun

_EXAMPLES = 12
_MOST_CHARACTERS = 400
_SMALL = frozenset({"a", "an", "and", "land", "of", "the"})
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SCHEMA = pa.schema(
    [("id", pa.string()), ("path", pa.string()), ("image", pa.binary()), ("zero_shot", pa.string()),
     ("image_caption", pa.string()), ("group_caption", pa.string())]
)  # fmt: skip


def latteclip_outcome(finished: FinishedRun) -> dict[str, Any]:
    """Writes ``captions.parquet`` where there are captions and returns the group ``latteclip`` of metrics.json."""
    names, row_N = finished.classes.names, finished.row_N
    told = latteclip_metrics(finished.state, names)
    kinds = {"images": IMAGE_CAPTIONS, "groups": GROUP_CAPTIONS}
    made = finished.artefacts
    of_all = {name: load_captions(made[kind]) for name, kind in kinds.items() if kind in made}
    if of_all:
        class_CD = finished.clip.class_embeddings(names, finished.classes.templates[:1]).cpu()
        class_N = best_classes(rows_of(finished.table.feature_ND, row_N), lambda feature_BD: feature_BD @ class_CD.T)[1]
        told["captions"] = {
            name: caption_metrics([captions[row] for row in row_N.tolist()], class_N, names)
            for name, captions in of_all.items()
        }
        shown = captions_table(finished, class_N, of_all.get("images", ()), of_all.get("groups", ()))
        finished.record.write_table("captions.parquet", shown)
    return told


def latteclip_metrics(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
    """The ``latteclip`` group of metrics.json: the mean share of every text source, how far prototypes went.

    Args:
        state: The method's tensors at the end.
        names: Of the classes.
    """
    share_EK, drift_EC = state["share_EK"].double().cpu(), state["drift_EC"].double().cpu()
    epochs = []
    for e in (~drift_EC.isnan().any(dim=1)).nonzero().flatten().tolist():
        shares = (share_EK[e, :-1] / share_EK[e, -1].clamp(min=1)).tolist()
        drift = {"drift": float(drift_EC[e].mean()), "largest_drift": float(drift_EC[e].max())}
        epochs.append({"epoch": e + 1} | dict(zip(SOURCES, shares, strict=True)) | drift)
    last_C = drift_EC[epochs[-1]["epoch"] - 1].tolist() if epochs else []
    return {"epochs": epochs, "classes": [{"class": names[c], "drift": drift} for c, drift in enumerate(last_C)]}


def caption_metrics(captions: Sequence[str | None], class_N: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """How many captions there are, and percent of them that name their image's zero-shot class, or any class.

    Args:
        captions: Of the training images.
        class_N: int64 zero-shot class of each.
        names: Of the classes.
    """
    wordings = [wordings_of(name) for name in names]
    own = named = there = 0
    for caption, class_ in zip(captions, class_N.tolist(), strict=True):
        if not caption:
            continue
        there += 1
        words = _words(caption)
        of_class = [any(wording <= words for wording in of_one) for of_one in wordings]
        own += of_class[class_]
        named += any(of_class)
    shares = {"name_class": 100.0 * own / there, "name_any": 100.0 * named / there} if there else {}
    return {"captions": there, "missing": len(captions) - there, "name_class": None, "name_any": None} | shares


def wordings_of(name: str) -> list[frozenset[str]]:
    """The ways to call a class, each as the words it takes: ``sea or lake`` is either, ``3`` is three."""
    wordings = [frozenset(_words(part) - _SMALL or _words(part)) for part in re.split(r"\bor\b|/|,", name)]
    wordings += [frozenset({_DIGITS[int(name)]})] if name in "0123456789" and len(name) == 1 else []
    return [wording for wording in wordings if wording]


def _words(text: str) -> set[str]:
    """Lower-case words; a plural s is taken off, so that ``rivers`` is ``river``."""
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in re.findall(r"\w+", text.lower())}


def captions_table(
    finished: FinishedRun,
    class_N: Tensor,
    image_captions: Sequence[str | None],
    group_captions: Sequence[str | None],
) -> pa.Table:
    """``captions.parquet``: a few training images, drawn by the run's seed, with what was said of them.

    Args:
        finished: The run.
        class_N: int64 zero-shot class of each training image.
        image_captions: Of all images; empty where the run uses none.
        group_captions: Likewise.
    """
    table, row_N, seed = finished.table, finished.row_N, finished.config.seed
    order_N = torch.randperm(len(row_N), generator=torch.Generator().manual_seed(seed))[:_EXAMPLES].tolist()
    shown = row_N[order_N].tolist()
    ids = [table.id_N[row] for row in shown]
    images = thumbnails(finished.source, table.row_N[shown].tolist(), finished.config.data, ids)
    rows = [
        {
            "id": ids[at],
            "path": table.path_N[shown[at]],
            "image": image,
            "zero_shot": finished.classes.names[int(class_N[order_N[at]])],
            "image_caption": _shown(image_captions, shown[at]),
            "group_caption": _shown(group_captions, shown[at]),
        }
        for at, image in images.items()
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _shown(captions: Sequence[str | None], row: int) -> str | None:
    text = captions[row] if captions else None
    return text if text is None or len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
