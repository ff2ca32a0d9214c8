"""The decoded images of a source as an artefact: visual prompts read pixels at every step, and decode them once.

Legend: N images, S image side in px.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray.data
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from raydapt.cluster.nodes import capacity
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.settings.groups import DataSettings, RaySettings, StageSettings
from raydapt.stages.context import configure
from raydapt.stages.features import image_settings
from raydapt.stages.reading import dataset_of_images, part_bytes, pixels_of
from raydapt.stages.run import Stage, StageResult, run_stage
from raydapt.store.artefact import Artefact, Store
from raydapt.store.fingerprint import Recipe

KIND = "pixels"
_BLOCK_BYTES = 32 * 1024 * 1024
_LARGEST_IN_MEMORY = 1024**3


def pixels_recipe(source: Source, image_spec: ImageSpec, data: DataSettings) -> Recipe:
    """What the pixels depend on: the images and how they are read; no model."""
    return Recipe(kind=KIND, settings=image_settings(image_spec, data), inputs=(source.identity,))


def pixels_stage(
    source: Source,
    *,
    image_spec: ImageSpec,
    settings: StageSettings,
    data: DataSettings,
    ray_settings: RaySettings,
    store: Store,
) -> StageResult:
    """Decodes a source's images, or finds them in the store (arguments as in `features_stage`).

    The rows have the order of the features of the same source and settings.
    """
    part_of = {part.index: part for part in source.parts}

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        size = part_bytes(settings.rows_per_part, image_spec)
        cpus = capacity(ray_settings.decode_nodes)["CPU"]
        configure(block_bytes=_BLOCK_BYTES, in_flight_bytes=int(2 * cpus * size))
        images = dataset_of_images(
            [part_of[index] for index in pending],
            data,
            image_spec,
            rows_per_part=settings.rows_per_part,
            packed=False,
            ray_settings=ray_settings,
        )
        return images, 0

    stage = Stage(
        recipe=pixels_recipe(source, image_spec, data),
        parts=list(part_of),
        dataset_of=dataset_of,
        rows=source.rows,
        max_error_share=data.max_error_share,
        ray=ray_settings,
    )
    return run_stage(store, stage)


def load_pixels(artefact: Artefact, cache_folder: str | Path, *, largest_in_memory: int = _LARGEST_IN_MEMORY) -> Tensor:
    """The pixels as a uint8 tensor [N, 3, S, S]; images in error are zeros.

    Args:
        artefact: Finished pixels.
        cache_folder: A local folder; more than ``largest_in_memory`` bytes are laid out there in one ``.npy`` file
            and mapped into memory, by every process of the machine the same pages.
        largest_in_memory: Bytes that are simply read into memory.
    """
    rows, side = artefact.manifest.rows, int(artefact.manifest.settings["image"]["size_px"])
    shape = (rows, 3, side, side)
    if rows * 3 * side * side <= largest_in_memory:
        pixel_N3SS = np.zeros(shape, dtype=np.uint8)
        _fill(artefact, pixel_N3SS)
        return torch.from_numpy(pixel_N3SS)
    target = Path(cache_folder) / f"{artefact.kind}-{artefact.fingerprint}.npy"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
        mapped = open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)  # type: ignore[no-untyped-call,unused-ignore]
        _fill(artefact, mapped)
        temporary.replace(target)
    # Copy-on-write: torch wants a writable array, and the file must stay as it is.
    return torch.from_numpy(np.load(target, mmap_mode="c"))


def _fill(artefact: Artefact, pixel_N3SS: np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]) -> None:
    start = 0
    for table in artefact.iter_tables(["pixel"]):
        pixel_N3SS[start : start + table.num_rows] = pixels_of(table)
        start += table.num_rows
