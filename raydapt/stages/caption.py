"""Captions of images and of groups of images, one row per image of the source, in its order (LatteCLIP).

Rows are those of the features, in their order; the parts are smaller (`raydapt.artefacts.captions.Piece`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, pieces_of
from raydapt.cluster.nodes import require_cpu
from raydapt.data.canvas import CANVAS_PX, canvas_sides, shrink, tile_group
from raydapt.data.classes import fill_template
from raydapt.data.decode import BadImage, decode_rgb
from raydapt.data.sources import Source
from raydapt.settings.groups import DataSettings, RaySettings
from raydapt.settings.language import CaptionSettings
from raydapt.stages.asking import answer_s, ask, parts_here
from raydapt.stages.caption_rows import (
    IMAGES,
    MEMBERS,
    KnownRows,
    group_rows,
    group_rows_on_ray,
    image_rows,
    image_rows_on_ray,
)
from raydapt.stages.commit import PART, PART_ROWS
from raydapt.stages.engine_work import WORK_FIELDS
from raydapt.stages.questions import ANSWER, ASKED, ERROR, Prompt, Questions, SkipRow
from raydapt.stages.run import Parts, Stage, run_stage
from raydapt.store.artefact import StageResult, Store
from raydapt.store.fingerprint import Recipe

if TYPE_CHECKING:
    import ray.data

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
    *WORK_FIELDS,
]
_SCHEMAS = {
    IMAGE_CAPTIONS: pa.schema(_KEPT),
    GROUP_CAPTIONS: pa.schema([*_KEPT, (MEMBERS, pa.list_(pa.string()))]),
}


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
    settings, piece_of = job.settings, {piece.number: piece for piece in pieces_of(job.source)}
    parts = job.source.parts
    in_groups = job.recipe.kind == GROUP_CAPTIONS
    named = partial(as_captions, model=settings.model)
    questions = Questions(
        build=asker_of(job),
        texts=lambda: _filled(job.prompt, known),
        images=True,
        schema=_SCHEMAS[job.recipe.kind],
        setting="caption",
    )

    def here(numbers: Sequence[int]) -> Parts:
        pending = [piece_of[number] for number in numbers]
        if known and in_groups:
            rows = group_rows(pending, parts, job.data, job.prompt, known, _cell_px(settings))
        else:
            rows = image_rows(pending, parts, job.data, job.prompt, known)
        return parts_here(rows, questions, settings, address=job.address, named=named)

    def dataset_of(numbers: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        nodes = require_cpu(ray_settings, ray_settings.decode_nodes, setting="ray.decode_nodes")
        pending = [piece_of[number] for number in numbers]
        if known and in_groups:
            cell_px = _cell_px(settings)
            rows = group_rows_on_ray(pending, parts, job.data, job.prompt, known, cell_px, nodes)
        else:
            rows = image_rows_on_ray(pending, parts, job.data, job.prompt, known, nodes)
        answered, engines = ask(rows, questions, settings, address=job.address, ray_settings=ray_settings)
        return answered.map_batches(named, batch_format="pyarrow", batch_size=None), engines

    stage = Stage(
        recipe=job.recipe,
        parts=list(piece_of),
        dataset_of=dataset_of,
        here=here,
        row_s=lambda: answer_s(settings, job.address, images=True),
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


def _cell_px(settings: CaptionSettings) -> int:
    canvas = CANVAS_PX if settings.canvas_px == "auto" else settings.canvas_px
    side, gap = canvas_sides([], canvas, None if settings.gap_px == "auto" else settings.gap_px)
    return max(1, (side - gap) // 2)
