"""What FAIR did, for its report: crops that counted, weights beside correctness, how far anchors moved.

Labels are read here, as in `raydapt.run.evaluation`; nothing goes back to the method.

Legend: N rows of the features artefact, M examined images, C classes, K crops, P stored side in px.
"""

import io
import itertools
from typing import Any

import pyarrow as pa
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from raydapt.artefacts.crops import boxes_of
from raydapt.artefacts.inputs import images_of
from raydapt.data.classes import ClassSpace
from raydapt.data.decode import BadImage, decode_image
from raydapt.data.reread import reread_images
from raydapt.methods.fair.method import Anchors, Fair
from raydapt.methods.fair.resolve import crop_spec
from raydapt.methods.fair.rules import crop_weights
from raydapt.methods.spec import FinishedRun
from raydapt.models.views import crop_view, whole_view

_EXAMINED = 512
_EXAMPLES = 12
_SHOWN_PX = 128
_BINS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
_KEPT, _LEFT = (230, 120, 0), (150, 150, 150)


@torch.no_grad()
def alignment_outcome(finished: FinishedRun) -> dict[str, Any]:
    """Writes ``crops.parquet`` and returns the group ``alignment`` of metrics.json."""
    method = finished.method
    assert isinstance(method, Fair)
    generator = torch.Generator().manual_seed(finished.config.seed)
    row_M = finished.row_N[torch.randperm(len(finished.row_N), generator=generator)[:_EXAMINED]]
    image_N = images_of(method.input_kind, finished.table, finished.artefacts, finished.config.train.cache_gb)
    parts = [
        method.pseudo_label(image_N[row_B].to(finished.device), crop_seed=i)
        for i, row_B in enumerate(torch.split(row_M, 64))
    ]
    label_M = torch.cat([label.cpu() for label, _, _ in parts])
    weight_M = torch.cat([weight.cpu() for _, weight, _ in parts])
    finished.record.write_table("crops.parquet", _examples(finished, method, row_M))
    return {
        "examined": len(row_M),
        "weights": weight_rows(weight_M, label_M, finished.class_A[row_M]),
        "anchors": anchor_rows(finished.classes, method),
    }


def weight_rows(weight_M: Tensor, label_M: Tensor, class_M: Tensor) -> list[dict[str, Any]]:
    """Images and the share of right pseudo-labels (percent, null without labels) between bounds of the weight."""
    rows = []
    for low, high in itertools.pairwise(_BINS):
        inside = (weight_M > low) & (weight_M <= high)
        known = inside & (class_M >= 0)
        right = float((label_M == class_M)[known].float().mean()) * 100 if known.any() else None
        rows.append({"from": low, "to": high, "images": int(inside.sum()), "accuracy": right})
    return rows


def anchor_rows(classes: ClassSpace, method: Fair) -> list[dict[str, Any]]:
    """How far each class's anchor is from where it began, in degrees, and the class whose anchor is nearest now."""
    names, clip = classes.names, method.tower.clip
    start_CD = torch.nn.functional.normalize(Anchors(clip, classes, method.settings).to(clip.device)(), dim=1)
    now_CD = torch.nn.functional.normalize(method.anchors(), dim=1)
    moved_C = torch.rad2deg((start_CD * now_CD).sum(dim=1).clamp(-1, 1).acos())
    likeness_CC = (now_CD @ now_CD.T).fill_diagonal_(-2)
    return [
        {"class": name, "degrees": float(moved_C[i]), "nearest": names[int(likeness_CC[i].argmax())]}
        for i, name in enumerate(names)
    ]


def _examples(finished: FinishedRun, method: Fair, row_M: Tensor) -> pa.Table:
    """A few images with their crops outlined: those that count for the final model, and the others."""
    settings, data, table = method.settings, finished.config.data, finished.table
    columns: dict[str, list[Any]] = {"id": [], "path": [], "image": [], "predicted": [], "weights": []}
    schema = pa.schema(
        [("id", pa.string()), ("path", pa.string()), ("image", pa.binary()), ("predicted", pa.string()),
         ("weights", pa.list_(pa.float32()))]
    )  # fmt: skip
    if not settings.n_crops:
        return pa.table(columns, schema=schema)
    shown = row_M[:_EXAMPLES].tolist()
    ids = [table.id_N[row] for row in shown]
    for at, encoded in reread_images(finished.source, table.row_N[shown].tolist(), data, ids=ids):
        try:
            pixel = decode_image(
                encoded, finished.stored_spec, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes
            )
        except BadImage:  # the source changed under the run
            continue
        box_1K4 = boxes_of([ids[at]], crop_spec(settings))
        class_, weight_K = _judge(method, torch.from_numpy(pixel)[None], box_1K4)
        columns["id"].append(ids[at])
        columns["path"].append(table.path_N[shown[at]])
        columns["image"].append(outlined(pixel, box_1K4[0], weight_K))
        columns["predicted"].append(finished.classes.names[class_])
        columns["weights"].append(weight_K.tolist())
    return pa.table(columns, schema=schema)


def _judge(method: Fair, pixel_13PP: Tensor, box_1K4: Tensor) -> tuple[int, Tensor]:
    """The pseudo-class of one image and the weights [K] of its crops."""
    settings, clip = method.settings, method.tower.clip
    pixel_13PP, side = pixel_13PP.to(clip.device), clip.image_spec.size_px
    whole_1D = method.tower.encode(whole_view(pixel_13PP, side))
    crop_1KD = method.tower.encode(crop_view(pixel_13PP, box_1K4, side))[None]
    weight_1K = crop_weights(whole_1D, crop_1KD, top_k=settings.top_k, temperature=settings.temperature)
    score_C = (torch.einsum("bk,bkd->bd", weight_1K, crop_1KD) @ method.anchors().T)[0]
    return int(score_C.argmax()), weight_1K[0].cpu()


def outlined(pixel_3PP: Any, box_K4: Tensor, weight_K: Tensor) -> bytes:
    """The image as a PNG of `_SHOWN_PX` px with the crops outlined, those that count on top and in colour."""
    image = Image.fromarray(pixel_3PP.transpose(1, 2, 0)).resize((_SHOWN_PX, _SHOWN_PX), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for k in weight_K.argsort().tolist():
        kept = bool(weight_K[k] > 0)
        corners = [min(_SHOWN_PX - 1, round(float(v) * _SHOWN_PX)) for v in box_K4[k]]
        draw.rectangle(corners, outline=_KEPT if kept else _LEFT, width=2 if kept else 1)
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return sink.getvalue()
