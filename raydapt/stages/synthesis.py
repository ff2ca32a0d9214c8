"""Synthetic images of every class, made by a pool of actors that hold a diffusion pipeline.

One part is one batch: `batch_size` consecutive images of one class. Parts are numbered block by block, so that more
images per class are further parts of the same artefact. An image depends on its class, its number and the settings
alone; its rows read like any Parquet image set, labelled with what they were asked to show.

Legend: M synthetic images, B batch, S image side in px.
"""

from __future__ import annotations

import io
import platform
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from raydapt.artefacts.synthesis import SynthesisJob
from raydapt.data.classes import fill_template
from raydapt.data.decode import image_id
from raydapt.errors import UserError
from raydapt.models.diffusion import ImageMaker, image_seed
from raydapt.models.diffusion_lora import WEIGHTS_FILE, apply_lora
from raydapt.models.peak import Work
from raydapt.models.pipelines import denoiser_bytes, load_pipeline, pipeline_identity
from raydapt.settings.groups import RaySettings, StageSettings, SynthesisSettings
from raydapt.stages.commit import PART, committing, with_part, with_work
from raydapt.stages.context import ActorPlan, configure, plan_actors, plan_here
from raydapt.stages.run import Parts, Stage, run_stage
from raydapt.stages.work import device_kind, drawing_s
from raydapt.store.artefact import StageResult, Store
from raydapt.store.folder import Folder

if TYPE_CHECKING:
    import ray.data

NOT_FINITE = "not_finite"


class Synthesizer:
    """The actor: a pipeline loaded once, part numbers in, parts of images out."""

    def __init__(
        self, job: SynthesisJob, plan: ActorPlan, lora: Folder | None = None, *, compile_denoiser: bool = False
    ) -> None:
        """Loads the pipeline.

        Args:
            job: What is made.
            plan: What the actor has.
            lora: Where the LoRA of the job lies that it does not hold itself.
            compile_denoiser: See ``synthesis.compile``.
        """
        if lora is not None:
            job = replace(job, lora=lora.read(WEIGHTS_FILE))
        torch.set_num_threads(max(1, int(plan.cpus)))
        device = "cuda" if plan.gpus and torch.cuda.is_available() else "cpu"
        if pipeline_identity(job.pipeline) != job.identity:
            raise UserError(
                f"Setting synthesis.pipeline={job.pipeline!r} holds other weights on node {platform.node()!r}, or they "
                "changed meanwhile: give every node the same ones, then run the command again."
            )
        pipeline = load_pipeline(job.pipeline, device=device, precision=job.sampling.precision)
        if job.lora is not None:
            apply_lora(pipeline, job.lora)
        self._job, self._maker = job, ImageMaker(pipeline, job.sampling, compile_denoiser=compile_denoiser)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Makes one part."""
        return self.make(int(batch[PART][0]))

    def make(self, part: int) -> pa.Table:
        """Makes the part of a number."""
        class_, indices = self._job.place(part)
        before_s, before = self._maker.clock.read()
        table = make_part(self._maker, self._job, class_, indices)
        seconds, work = self._maker.clock.read()
        done = Work(work.flop - before.flop, work.peak_flop_per_s)
        return with_work(with_part(table, part), seconds - before_s, done)


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

    def here(pending: Sequence[int]) -> Parts:
        check_room(store, len(pending) * settings.batch_size, job.sampling.size_px)
        plan = plan_here(spread, gpu=device_kind() == "cuda")
        synthesizer = Synthesizer(job, plan, compile_denoiser=settings.compile)
        for part in pending:
            yield part, synthesizer.make(part)

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        import ray.data
        from ray.data import ActorPoolStrategy

        check_room(store, len(pending) * settings.batch_size, job.sampling.size_px)
        plan = plan_actors(spread, parts=len(pending), ray_settings=ray_settings, key="synthesis")
        configure()
        lora = None
        if job.lora is not None:  # too large to be handed to every actor by value
            lora = store.artefact_of(job.recipe).folder
            lora.write(WEIGHTS_FILE, job.lora)
        numbers = ray.data.from_items([{PART: part} for part in pending], override_num_blocks=len(pending))
        images = numbers.map_batches(
            committing(Synthesizer, store.artefact_of(job.recipe)),
            fn_constructor_args=(replace(job, lora=None), plan, lora),
            fn_constructor_kwargs={"compile_denoiser": settings.compile},
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
        here=here,
        row_s=lambda: image_s(job),
        rows=len(parts) * settings.batch_size,
        max_error_share=max_error_share,
        ray=ray_settings,
        grows=True,
    )
    return run_stage(store, stage)


def image_s(job: SynthesisJob) -> float | None:
    """Estimated seconds of one image; None for a pipeline that is yet to be fetched."""
    unet_bytes, how = denoiser_bytes(job.pipeline), job.sampling
    if not unet_bytes:
        return None
    return drawing_s(unet_bytes, size_px=how.size_px, steps=how.steps, guidance=how.guidance)


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
