"""Synthetic images of every class, made by a pool of actors that hold a diffusion pipeline.

One part is one batch: `batch_size` consecutive images of one class. Parts are numbered block by block, so that more
images per class are further parts of the same artefact. An image depends on its class, its number and the settings
alone; its rows read like any Parquet image set, labelled with what they were asked to show.

Legend: M synthetic images, B batch, S image side in px.
"""

import hashlib
import io
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data
import torch
from PIL import Image
from ray.data import ActorPoolStrategy
from torch import Tensor

from raydapt.data.classes import fill_template
from raydapt.data.decode import image_id
from raydapt.errors import UserError
from raydapt.models.diffusion import ImageMaker, Sampling, image_seed, load_pipeline, pipeline_identity
from raydapt.models.diffusion_lora import apply_lora
from raydapt.settings.groups import RaySettings, StageSettings, SynthesisSettings
from raydapt.stages.context import ActorPlan, configure, plan_actors
from raydapt.stages.run import MODEL_S, PART, PART_ROWS, Stage, StageResult, run_stage
from raydapt.store.artefact import Artefact, Store
from raydapt.store.fingerprint import Recipe

KIND = "synthetic"
NOT_FINITE = "not_finite"


@dataclass(frozen=True, kw_only=True)
class SynthesisJob:
    """What is made: resolved settings, nothing of how the work is spread.

    Attributes:
        class_names: All classes, in the order of the run.
        template: The prompt, with one ``{}``.
        pipeline: Name that the actors load the pipeline by.
        identity: Identity of its weights.
        sampling: How an image is made of a prompt.
        lora: LoRA weights, the bytes of a safetensors file in diffusers' layout; None for the pipeline as it is.
        lora_identity: What they are, for the fingerprint.
    """

    class_names: tuple[str, ...]
    template: str
    pipeline: str
    identity: str
    sampling: Sampling
    lora: bytes | None = None
    lora_identity: str = ""

    def with_lora(self, data: bytes) -> "SynthesisJob":
        """The same images by the pipeline with these LoRA weights, named by their digest."""
        return replace(self, lora=data, lora_identity=hashlib.sha256(data).hexdigest()[:16])

    @property
    def recipe(self) -> Recipe:
        """What the images depend on; how many there are is not part of it."""
        return synthesis_recipe(self.class_names, self.template, self.sampling, self.identity, self.lora_identity)

    def parts(self, samples_per_class: int) -> range:
        """The parts that hold so many images of every class; the last block of a class may hold more."""
        return range(-(-samples_per_class // self.sampling.batch_size) * len(self.class_names))

    def place(self, part: int) -> tuple[int, range]:
        """The class of a part, and the numbers of its images."""
        block, class_ = divmod(part, len(self.class_names))
        size = self.sampling.batch_size
        return class_, range(block * size, (block + 1) * size)


def synthesis_recipe(
    class_names: Sequence[str], template: str, sampling: Sampling, identity: str, lora_identity: str
) -> Recipe:
    """The recipe of synthetic images (see `SynthesisJob`), known before any of them, or the LoRA, is made."""
    settings = {"class_names": list(class_names), "template": template, "sampling": sampling}
    return Recipe(kind=KIND, settings=settings, inputs=(lora_identity,) if lora_identity else (), weights=identity)


@dataclass(frozen=True, kw_only=True)
class SyntheticTable:
    """Synthetic images sorted by class and number: the first m of every class are a slice.

    Attributes:
        row_M: int64 position of each image in the artefact read as an image source.
        id_M: Content ids.
        class_M: int64 class that each image was made of.
        index_M: int64 number of each image within its class.
        image_M: PNG bytes; None for an image that could not be made.
    """

    row_M: Tensor
    id_M: list[str]
    class_M: Tensor
    index_M: Tensor
    image_M: list[bytes | None]


class Synthesizer:
    """The actor: a pipeline loaded once, part numbers in, parts of images out."""

    def __init__(self, job: SynthesisJob, plan: ActorPlan) -> None:
        torch.set_num_threads(max(1, int(plan.cpus)))
        device = "cuda" if plan.gpus and torch.cuda.is_available() else "cpu"
        if pipeline_identity(job.pipeline) != job.identity:
            raise UserError(
                f"Setting synthesis.pipeline={job.pipeline!r} holds other weights on node {platform.node()!r}, or they "
                "changed meanwhile: give every node the same ones, then run the command again."
            )
        pipeline = load_pipeline(job.pipeline, device=device)
        if job.lora is not None:
            apply_lora(pipeline, job.lora)
        self._job, self._maker = job, ImageMaker(pipeline, job.sampling)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Makes one part."""
        part = int(batch[PART][0])
        class_, indices = self._job.place(part)
        before = self._maker.unet_seconds
        table = make_part(self._maker, self._job, class_, indices)
        seconds_each = (self._maker.unet_seconds - before) / table.num_rows
        return (
            table.append_column(PART, pa.array(np.full(table.num_rows, part)))
            .append_column(PART_ROWS, pa.array(np.full(table.num_rows, table.num_rows)))
            .append_column(MODEL_S, pa.array(np.full(table.num_rows, seconds_each)))
        )


def make_part(maker: ImageMaker, job: SynthesisJob, class_: int, indices: range) -> pa.Table:
    """Makes the images `indices` of a class: one row each, PNG bytes or an error."""
    name, size = job.class_names[class_], len(indices)
    prompt = fill_template(job.template, name)
    first = indices[0] * len(job.class_names) + class_ * size  # blocks before this one, then classes before this one
    try:
        images: list[bytes | None] = [png_bytes(pixel_SS3) for pixel_SS3 in maker.make(prompt, name, indices)]
        errors: list[str | None] = [None] * size
    except FloatingPointError:
        images, errors = [None] * size, [NOT_FINITE] * size
    paths = [f"synthetic/{name}/{index:05d}.png" for index in indices]
    return pa.table(
        {
            "row": pa.array(range(first, first + size), pa.int64()),
            "id": [image_id(path.encode() if data is None else data) for path, data in zip(paths, images, strict=True)],
            "image": pa.array(images, pa.binary()),
            "label": [name] * size,
            "class_index": pa.array([class_] * size, pa.int64()),
            "index": pa.array(indices, pa.int64()),
            "seed": pa.array([image_seed(job.sampling.seed, name, index) for index in indices], pa.int64()),
            "prompt": [prompt] * size,
            "path": paths,
            "error": pa.array(errors, pa.string()),
        }
    )


def png_bytes(pixel_SS3: np.ndarray) -> bytes:
    """The image as a PNG; the same pixels give the same bytes."""
    sink = io.BytesIO()
    Image.fromarray(pixel_SS3).save(sink, format="PNG")
    return sink.getvalue()


def synthesize_stage(
    job: SynthesisJob,
    *,
    settings: SynthesisSettings,
    max_error_share: float,
    ray_settings: RaySettings,
    store: Store,
) -> StageResult:
    """Makes `settings.samples_per_class` images of every class, or those of them that are not in the store.

    Args:
        job: What is made.
        settings: How many, and how the work is spread.
        max_error_share: Largest share of images that could not be made.
        ray_settings: The cluster; not touched when the images are there.
        store: Where artefacts live.

    Raises:
        UserError: When the disk cannot hold the images; see also `raydapt.stages.run.run_stage`.
    """
    parts = job.parts(settings.samples_per_class)
    spread = StageSettings(
        actors=settings.actors, cpus_per_actor=settings.cpus_per_actor, gpus_per_actor=settings.gpus_per_actor
    )

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        check_room(store, len(pending) * settings.batch_size, job.sampling.size_px)
        plan = plan_actors(spread, parts=len(pending), ray_settings=ray_settings, key="synthesis")
        configure()
        numbers = ray.data.from_items([{PART: part} for part in pending], override_num_blocks=len(pending))
        images = numbers.map_batches(
            Synthesizer,
            fn_constructor_args=(job, plan),
            batch_size=1,
            compute=ActorPoolStrategy(size=plan.actors, max_tasks_in_flight_per_actor=2),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            label_selector=plan.nodes,
        )
        return images, plan.actors

    stage = Stage(
        recipe=job.recipe,
        parts=parts,
        dataset_of=dataset_of,
        rows=len(parts) * settings.batch_size,
        max_error_share=max_error_share,
        ray=ray_settings,
        grows=True,
    )
    return run_stage(store, stage)


def check_room(store: Store, images: int, size_px: int) -> None:
    """Refuses more images than the disk of a local store has room for.

    Raises:
        UserError: With what is needed and what there is; a PNG is at most about as large as its pixels.
    """
    if not store.root.local:
        return
    folder = Path(store.root.path)
    while not folder.exists():
        folder = folder.parent
    needed, free = images * (3 * size_px**2 + 1024), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{images:,} images of {size_px} px may need {needed / 1e9:.1f} GB, but store={store.root.url!r} has "
            f"{free / 1e9:.1f} GB free: lower synthesis.samples_per_class or synthesis.size_px, or give another store."
        )


def load_synthetic(artefact: Artefact, samples_per_class: int) -> SyntheticTable:
    """The first `samples_per_class` images of every class, sorted by class and number.

    Raises:
        ValueError: If the artefact holds fewer.
    """
    table = artefact.read(["id", "image", "class_index", "index"])
    class_N = torch.from_numpy(table["class_index"].to_numpy().copy())
    index_N = torch.from_numpy(table["index"].to_numpy().copy())
    have = int(index_N.max()) + 1
    if have < samples_per_class:
        raise ValueError(f"{artefact!r} holds {have} images per class, not {samples_per_class}")
    row_M = torch.argsort(class_N * have + index_N)
    row_M = row_M[index_N[row_M] < samples_per_class]
    chosen = table.select(["id", "image"]).take(pa.array(row_M.numpy()))
    return SyntheticTable(
        row_M=row_M,
        id_M=chosen["id"].to_pylist(),
        class_M=class_N[row_M],
        index_M=index_N[row_M],
        image_M=chosen["image"].to_pylist(),
    )
