"""Captions of images and of groups of images, one row per image of the source, in its order (LatteCLIP).

Rows are those of the features, in their order; the parts are smaller (`raydapt.artefacts.captions.Piece`).

Legend: N images, 4 places of a group.
"""

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, Piece, pieces_of
from raydapt.cluster.nodes import require_cpu
from raydapt.data.canvas import CANVAS_PX, PER_GROUP, canvas_sides, shrink, tile_group
from raydapt.data.classes import fill_template
from raydapt.data.decode import BadImage, decode_rgb
from raydapt.data.sources import Part, Source, group_parts, read_parts
from raydapt.settings.groups import DataSettings, RaySettings
from raydapt.settings.language import CaptionSettings
from raydapt.stages.asking import ask
from raydapt.stages.llm import ANSWER, ASKED, ERROR, SKIPPED, Prompt, Questions, SkipRow
from raydapt.stages.run import PART, PART_ROWS, Stage, run_stage
from raydapt.store.artefact import StageResult, Store
from raydapt.store.fingerprint import Recipe

IMAGES, MEMBERS = "images", "members"
_ROWS_PER_BLOCK = 64  # encoded images of a block: small enough for any object store, two batches of the engine
_KEPT = [
    ("row", pa.int64()),
    ("id", pa.string()),
    ("path", pa.string()),
    (ASKED, pa.string()),
    (ANSWER, pa.string()),
    ("seconds", pa.float64()),
    (ERROR, pa.string()),
    (PART, pa.int64()),
    (PART_ROWS, pa.int64()),
]
_SCHEMAS = {
    IMAGE_CAPTIONS: pa.schema(_KEPT),
    GROUP_CAPTIONS: pa.schema([*_KEPT, (MEMBERS, pa.list_(pa.string()))]),
}


@dataclass(frozen=True, kw_only=True)
class KnownRows:
    """What is known of a source's images before they are described, in the order of their features.

    Attributes:
        first_row_of: Where each part begins among the N images, with N at the end; parts in their order.
        class_N: Zero-shot class; -1 where there is no image, or nobody wants its caption.
        row_N: Row number in the source.
        id_N: Content ids.
        path_N: Where each image came from.
        error_N: Why an image could not be used.
        wanted_N: Whether the image is to be described.
        group_N4: Its group, see `raydapt.data.groups.draw_groups`.
        class_names: Names of the classes.
    """

    first_row_of: npt.NDArray[np.int64]
    class_N: npt.NDArray[np.int64]
    row_N: npt.NDArray[np.int64]
    id_N: Sequence[str]
    path_N: Sequence[str]
    error_N: Sequence[str | None]
    wanted_N: npt.NDArray[np.bool_]
    group_N4: npt.NDArray[np.int64]
    class_names: Sequence[str]

    def part(self, index: int) -> slice:
        """The rows of a part among all of them."""
        return slice(int(self.first_row_of[index]), int(self.first_row_of[index + 1]))

    def rows_of(self, piece: Piece) -> slice:
        """The rows of a piece among all of them."""
        part = self.part(piece.part)
        return slice(part.start + piece.start, part.stop if piece.stop is None else part.start + piece.stop)


@dataclass(frozen=True, kw_only=True)
class CaptionJob:
    """What is described, by which model; `settings` hold no `auto` but for resources.

    Attributes:
        recipe: What the captions depend on; its kind says what is described.
        source: The images.
        prompt: What is asked; a ``{}`` is the image's zero-shot class.
        address: The model, see `raydapt.models.language.model_address`.
        settings: The model and its engine.
        data: Limits of decoding and the largest share of bad rows.
    """

    recipe: Recipe
    source: Source
    prompt: str
    address: str
    settings: CaptionSettings
    data: DataSettings


@dataclass(frozen=True, kw_only=True)
class CaptionAsker:
    """Makes the question of a row out of its encoded images: one as it is, or four on a canvas."""

    image_px: int
    canvas_px: int | None
    gap_px: int | None
    max_pixels: int
    max_bytes: int

    def __call__(self, row: dict[str, Any]) -> Prompt:
        """Takes the column of encoded images out of the row."""
        encoded = row.pop(IMAGES, None) or []
        if row[ERROR]:
            raise SkipRow(row[ERROR])
        try:
            images = [decode_rgb(data, max_pixels=self.max_pixels, max_bytes=self.max_bytes) for data in encoded]
        except BadImage as error:
            raise SkipRow(error.reason) from None
        image = tile_group(images, self.canvas_px, self.gap_px) if len(images) > 1 else images[0]
        return Prompt(text=row[ASKED], image=shrink(image, self.image_px), seed=int(row["id"], 16) >> 1)


def caption_stage(job: CaptionJob, *, known: KnownRows | None, ray_settings: RaySettings, store: Store) -> StageResult:
    """Describes the images of a source, or finds their captions in the store.

    Args:
        job: What is described.
        known: What is known of the images; None describes every image, and asks nothing of a class.
        ray_settings: The cluster; not touched when the captions are there.
        store: Where artefacts live.

    Raises:
        UserError: For a model that is none, and see `raydapt.stages.run.run_stage`.
    """
    kind, settings = job.recipe.kind, job.settings
    piece_of = {piece.number: piece for piece in pieces_of(job.source)}

    def dataset_of(numbers: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        nodes = require_cpu(ray_settings, ray_settings.decode_nodes, setting="ray.decode_nodes")
        pending = [piece_of[number] for number in numbers]
        if known and kind == GROUP_CAPTIONS:
            rows = _group_rows(job, known, pending, nodes)
        else:
            rows = _image_rows(job, known, pending, nodes)
        questions = Questions(
            build=asker_of(job),
            texts=lambda: _filled(job.prompt, known),
            images=True,
            schema=_SCHEMAS[kind],
            setting="caption",
        )
        answered, engines = ask(rows, questions, settings, address=job.address, ray_settings=ray_settings)
        named = partial(as_captions, model=settings.model)
        return answered.map_batches(named, batch_format="pyarrow", batch_size=None), engines

    stage = Stage(
        recipe=job.recipe,
        parts=list(piece_of),
        dataset_of=dataset_of,
        rows=job.source.rows,
        max_error_share=job.data.max_error_share,
        ray=ray_settings,
    )
    return run_stage(store, stage)


def asker_of(job: CaptionJob) -> CaptionAsker:
    """What makes the questions of a job."""
    settings, data = job.settings, job.data
    return CaptionAsker(
        image_px=settings.image_px,
        canvas_px=None if settings.canvas_px == "auto" else settings.canvas_px,
        gap_px=None if settings.gap_px == "auto" else settings.gap_px,
        max_pixels=data.max_image_pixels,
        max_bytes=data.max_image_bytes,
    )


def as_captions(table: pa.Table, model: str) -> pa.Table:
    """A result's columns under the names that are stored, with the model's."""
    names = {ASKED: "prompt", ANSWER: "caption"}
    renamed = table.rename_columns([names.get(name, name) for name in table.column_names])
    return renamed.append_column("model", pa.array([model] * table.num_rows, pa.string()))


def _filled(prompt: str, known: KnownRows | None) -> list[str]:
    """All texts that may be asked."""
    return [fill_template(prompt, name) for name in known.class_names] if known and "{}" in prompt else [prompt]


def _image_rows(
    job: CaptionJob, known: KnownRows | None, pending: Sequence[Piece], nodes: dict[str, str] | None
) -> ray.data.Dataset:
    """Rows to be asked about one image each, read on the nodes named."""
    pieces_of_part: dict[int, list[Piece]] = {}
    for piece in pending:
        pieces_of_part.setdefault(piece.part, []).append(piece)
    items = []
    for group in group_parts([part for part in job.source.parts if part.index in pieces_of_part]):
        pieces = [pieces_of_part[part.index] for part in group]
        asked = [None if known is None else _asked(job.prompt, known, part.index) for part in group]
        items.append({"work": pickle.dumps((group, pieces, asked))})
    read = partial(read_images, data=job.data, prompt=job.prompt)
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=1, label_selector=nodes)


def _asked(prompt: str, known: KnownRows, part: int) -> list[str | None]:
    """What is asked about each image of a part; None about those that are passed over (not bad ones: they stay bad)."""
    rows = known.part(part)
    wanted = zip(known.wanted_N[rows].tolist(), known.error_N[rows], known.class_N[rows].tolist(), strict=True)
    return [_question(prompt, known, c) if want or error else None for want, error, c in wanted]


def _question(prompt: str, known: KnownRows, class_: int) -> str:
    return fill_template(prompt, known.class_names[class_]) if "{}" in prompt and class_ >= 0 else prompt


def read_images(batch: pa.Table, *, data: DataSettings, prompt: str) -> Iterator[pa.Table]:
    """Reads parts and yields the rows of their pieces in blocks, with the encoded image as a list of one."""
    parts, pieces_of_parts, asked = pickle.loads(batch["work"][0].as_py())
    for (_, table), pieces, texts in zip(read_parts(parts, data), pieces_of_parts, asked, strict=True):
        texts = texts or [prompt] * table.num_rows
        errors = [error or (SKIPPED if text is None else None)
                  for error, text in zip(table["error"].to_pylist(), texts, strict=True)]  # fmt: skip
        images = pa.array([[image] for image in table["image"].to_pylist()], pa.list_(pa.large_binary()))
        rows = table.select(["row", "id", "path"]).append_column(IMAGES, images)
        rows = rows.append_column(ASKED, pa.array(texts, pa.string())).append_column(
            ERROR, pa.array(errors, pa.string())
        )
        for piece in pieces:
            own = rows.slice(piece.start, None if piece.stop is None else piece.stop - piece.start)
            yield from _blocks(_of_part(own, piece.number, own.num_rows))


def _group_rows(
    job: CaptionJob, known: KnownRows, pending: Sequence[Piece], nodes: dict[str, str] | None
) -> ray.data.Dataset:
    """Rows to be asked about four images each, which lie anywhere in the source; read on the nodes named.

    Every part is read once, and its images wait in Ray's object store, no larger than their cells.
    """
    shelve = ray.remote(_shelve)
    shelves: list[ray.ObjectRef[Any]] = []
    for group in group_parts(job.source.parts):
        returned = shelve.options(num_returns=len(group), label_selector=nodes).remote(
            group, job.data, _cell_px(job.settings)
        )
        shelves.extend(returned if isinstance(returned, list) else [returned])
    items = [
        {
            PART: piece.number,
            "start": start,
            "stop": min(start + _ROWS_PER_BLOCK, rows.stop),
            PART_ROWS: rows.stop - rows.start,
        }
        for piece, rows in ((piece, known.rows_of(piece)) for piece in pending)
        for start in range(rows.start, rows.stop, _ROWS_PER_BLOCK)
    ]
    gather = partial(gather_groups, prompt=job.prompt, known=ray.put(known), shelves=shelves)
    dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
    return dataset.map_batches(gather, batch_size=1, batch_format="pyarrow", num_cpus=1, label_selector=nodes)


def _cell_px(settings: CaptionSettings) -> int:
    canvas = CANVAS_PX if settings.canvas_px == "auto" else settings.canvas_px
    side, gap = canvas_sides([], canvas, None if settings.gap_px == "auto" else settings.gap_px)
    return max(1, (side - gap) // 2)


def _shelve(parts: Sequence[Part], data: DataSettings, cell_px: int) -> Any:
    """The images of each part as one Arrow array of encoded bytes; null where there is none."""
    arrays = []
    for _, table in read_parts(parts, data):
        images = [None if image is None else compact(image, cell_px, data) for image in table["image"].to_pylist()]
        arrays.append(pa.array(images, pa.large_binary()))
    return arrays if len(arrays) > 1 else arrays[0]


def compact(image: bytes, cell_px: int, data: DataSettings) -> bytes | None:
    """An encoded image no larger than its cell's pixels are: as it is, or made to fit; None for a bad one."""
    if len(image) <= 3 * cell_px**2:
        return image
    try:
        decoded = decode_rgb(image, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes)
    except BadImage:
        return None
    sink = io.BytesIO()
    shrink(decoded, cell_px).save(sink, format="PNG")
    return sink.getvalue()


def gather_groups(
    batch: pa.Table, *, prompt: str, known: "ray.ObjectRef[KnownRows]", shelves: Sequence["ray.ObjectRef[pa.Array]"]
) -> pa.Table:
    """One block of rows with the encoded images of their groups."""
    row = batch.to_pylist()[0]
    rows, everything = slice(row["start"], row["stop"]), ray.get(known)
    group_B4 = everything.group_N4[rows]
    image_of = _fetch(everything, np.unique(group_B4[group_B4 >= 0]), shelves)
    images, members, errors = [], [], []
    for at, group in zip(range(rows.start, rows.stop), group_B4.tolist(), strict=True):
        drawn = [i for i in group if i >= 0]
        encoded = [image_of[i] for i in drawn]
        missing = len(drawn) < PER_GROUP or any(image is None for image in encoded)
        passed_over = everything.error_N[at] or (None if everything.wanted_N[at] else SKIPPED)
        errors.append(passed_over or ("member_missing" if missing else None))
        images.append(None if errors[-1] else encoded)
        members.append([everything.id_N[i] for i in drawn] or None)
    asked = [_question(prompt, everything, c) for c in everything.class_N[rows].tolist()]
    table = pa.table(
        {
            "row": pa.array(everything.row_N[rows]),
            "id": pa.array(everything.id_N[rows], pa.string()),
            "path": pa.array(everything.path_N[rows], pa.string()),
            IMAGES: pa.array(images, pa.list_(pa.large_binary())),
            MEMBERS: pa.array(members, pa.list_(pa.string())),
            ASKED: pa.array(asked, pa.string()),
            ERROR: pa.array(errors, pa.string()),
        }
    )
    return _of_part(table, row[PART], row[PART_ROWS])


def _fetch(
    known: KnownRows, wanted_M: npt.NDArray[np.int64], shelves: Sequence["ray.ObjectRef[pa.Array]"]
) -> Mapping[int, bytes | None]:
    """The encoded images at these places, shelf by shelf, so that no more than one part is held at a time."""
    shelf_M = np.searchsorted(known.first_row_of, wanted_M, side="right") - 1
    images: dict[int, bytes | None] = {}
    for shelf in np.unique(shelf_M).tolist():
        array = ray.get(shelves[shelf])
        for place in wanted_M[shelf_M == shelf].tolist():
            images[place] = array[place - int(known.first_row_of[shelf])].as_py()
    return images


def _of_part(table: pa.Table, part: int, part_rows: int) -> pa.Table:
    table = table.append_column(PART, pa.array(np.full(table.num_rows, part)))
    return table.append_column(PART_ROWS, pa.array(np.full(table.num_rows, part_rows)))


def _blocks(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, _ROWS_PER_BLOCK):
        yield table.slice(start, _ROWS_PER_BLOCK)
