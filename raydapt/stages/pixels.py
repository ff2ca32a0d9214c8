"""The decoded images of a source as an artefact: visual prompts read pixels at every step, and decode them once.

Legend: N images, S image side in px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raydapt.artefacts.pixels import encoded, pixels_recipe
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.stages.commit import with_part
from raydapt.stages.context import StageContext, configure
from raydapt.stages.reading import dataset_of_images, decoded_here, part_bytes
from raydapt.stages.run import Parts, run_stage, stage_of_images
from raydapt.stages.work import DECODE_S
from raydapt.store.artefact import StageResult

if TYPE_CHECKING:
    import ray.data

_BLOCK_BYTES = 32 * 1024 * 1024


def pixels_stage(source: Source, context: StageContext, *, image_spec: ImageSpec) -> StageResult:
    """Decodes a source's images, or finds them in the store (arguments as in `features_stage`).

    The rows have the order of the features of the same source and settings.
    """
    encoding = context.settings.stored_pixels
    recipe = pixels_recipe(source, image_spec, context.data, encoding)
    part_of = {part.index: part for part in source.parts}
    settings, ray_settings = context.settings, context.ray

    def here(pending: Sequence[int]) -> Parts:
        for part, table in decoded_here([part_of[index] for index in pending], context.data, image_spec):
            yield part, with_part(encoded(table, encoding), part)

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        from raydapt.cluster.nodes import capacity

        size = part_bytes(settings.rows_per_part, image_spec)
        cpus = capacity(ray_settings.decode_nodes)["CPU"]
        configure(block_bytes=_BLOCK_BYTES, in_flight_bytes=int(2 * cpus * size))
        images = dataset_of_images(
            [part_of[index] for index in pending],
            context.data,
            image_spec,
            rows_per_part=settings.rows_per_part,
            commit=context.store.artefact_of(recipe),
            encoding=encoding,
            ray_settings=ray_settings,
        )
        return images, 0

    stage = stage_of_images(source, context, recipe, dataset_of, here=here, row_s=lambda: DECODE_S)
    return run_stage(context.store, stage)
