"""The thumbnails of the report: few images, read again from the source, since the store keeps none."""

import io
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import torch
from PIL import Image

from raydapt.data.decode import BadImage, ImageSpec, decode_image
from raydapt.data.sources import read_parts
from raydapt.report.gallery import choose_gallery
from raydapt.run.plan import Plan
from raydapt.stages.features import FeatureTable
from raydapt.store.artefact import Artefact

SHOWN_CLASSES, SHOWN_PER_CLASS = 24, 6
_THUMBNAIL = ImageSpec(
    size_px=64, resize_mode="shortest", interpolation="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
_SYNTHETIC_SCHEMA = pa.schema([("class", pa.string()), ("index", pa.int64()), ("image", pa.binary())])
_SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("kind", pa.string()), ("path", pa.string())])


def gallery_table(plan: Plan, table: FeatureTable, row_T: torch.Tensor, predictions: pa.Table) -> pa.Table:
    """``gallery.parquet``: thumbnails of the most confident and of the most changed predictions."""
    kind_of = choose_gallery(predictions)
    position_of = {table.id_N[i]: i for i in row_T.tolist() if table.id_N[i] in kind_of}
    images = {
        table.id_N[position]: image for position, image in thumbnails(plan, table, list(position_of.values())).items()
    }
    shown = [id_ for id_ in kind_of if images.get(id_)]
    columns = {
        "id": shown,
        "image": [images[id_] for id_ in shown],
        "kind": [kind_of[id_] for id_ in shown],
        "path": [table.path_N[position_of[id_]] for id_ in shown],
    }
    return pa.table(columns, schema=_SCHEMA)


def thumbnails(plan: Plan, table: FeatureTable, positions: Sequence[int]) -> dict[int, bytes]:
    """Small PNGs of a few positions of the features; empty where an image can no longer be read."""
    data = plan.config.data
    return {
        position: _thumbnail(encoded, data.max_image_pixels, data.max_image_bytes)
        for position, encoded in image_bytes(plan, table, positions).items()
    }


def image_bytes(plan: Plan, table: FeatureTable, positions: Sequence[int]) -> dict[int, bytes]:
    """The encoded images of a few positions of the features, read again from the source; those that are still there."""
    position_of = {table.id_N[position]: position for position in positions}
    firsts = [part.first_row for part in plan.source.parts]
    wanted: dict[int, set[str]] = defaultdict(set)
    for id_, position in position_of.items():
        wanted[bisect_right(firsts, int(table.row_N[position])) - 1].add(id_)
    found: dict[int, bytes] = {}
    for part, rows in read_parts([plan.source.parts[index] for index in sorted(wanted)], plan.config.data):
        for id_, image in zip(rows["id"].to_pylist(), rows["image"], strict=True):
            if id_ in wanted[part.index] and image.is_valid:
                found[position_of[id_]] = image.as_py()
    return found


def synthetic_table(artefact: Artefact, plan: Plan) -> pa.Table:
    """``synthetic.parquet``: thumbnails of the first synthetic images of each of the first classes, none picked."""
    from raydapt.stages.synthesis import load_synthetic  # diffusers takes seconds to import

    data, names = plan.config.data, plan.classes.names
    made = load_synthetic(artefact, min(SHOWN_PER_CLASS, plan.config.synthesis.samples_per_class))
    rows = [
        {
            "class": names[class_],
            "index": index,
            "image": _thumbnail(image, data.max_image_pixels, data.max_image_bytes),
        }
        for class_, index, image in zip(made.class_M.tolist(), made.index_M.tolist(), made.image_M, strict=True)
        if class_ < SHOWN_CLASSES and image is not None
    ]
    return pa.Table.from_pylist(rows, schema=_SYNTHETIC_SCHEMA)


def _thumbnail(data: bytes, max_pixels: int, max_bytes: int) -> bytes:
    """The image as a small PNG; empty if it can no longer be read (the source changed under the run)."""
    try:
        pixel_3SS = decode_image(data, _THUMBNAIL, max_pixels=max_pixels, max_bytes=max_bytes)
    except BadImage:
        return b""
    sink = io.BytesIO()
    Image.fromarray(pixel_3SS.transpose(1, 2, 0)).save(sink, format="PNG")
    return sink.getvalue()
