"""From a plan to synthetic images: what is made, the LoRA that it may need first, and the images that teach the LoRA.

    features of the frozen CLIP -> confident pseudo-labels -> LoRA of the pipeline -> images of every class

Everything has a name before it is made: the recipe of the images holds that of the LoRA, and that of the features.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raydapt.data.classes import ClassSpace, fill_template
from raydapt.data.decode import BadImage, ImageSpec, decode_image
from raydapt.data.sources import read_parts
from raydapt.errors import UserError
from raydapt.models.clip import load_clip
from raydapt.models.diffusion import Sampling, native_size_px, pipeline_identity
from raydapt.models.diffusion_lora import read_lora
from raydapt.run.plan import Plan, rows_of_splits
from raydapt.settings.config import Config
from raydapt.stages.features import load_features
from raydapt.stages.run import StageResult
from raydapt.stages.synthesis import SynthesisJob, synthesize_stage
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe
from raydapt.train.lora import ConfidentImages, LoraJob, confident_images, load_lora, tune_lora


@dataclass(frozen=True, kw_only=True)
class SynthesisPlan:
    """The images that are to be made, decided."""

    job: SynthesisJob
    """Complete but for the weights of a LoRA that is to be trained first."""
    lora: Recipe | None
    """The LoRA that is to be trained first; None when there is none, or a given one."""


def plan_synthesis(config: Config, classes: ClassSpace, features: Recipe) -> SynthesisPlan:
    """Resolves the settings of the synthetic images; loads no model.

    Args:
        config: The settings of a run.
        classes: Its classes.
        features: The recipe of its features, which the LoRA's pseudo-labels depend on.

    Raises:
        UserError: For a pipeline, a LoRA folder or a template that cannot work.
    """
    settings = config.synthesis
    template = classes.templates[0] if settings.template == "auto" else settings.template
    if template.count("{}") != 1:
        raise UserError(f"Setting synthesis.template={template!r} must hold exactly one {{}}, the place of the class.")
    size_px = native_size_px(settings.pipeline) if settings.size_px == "auto" else settings.size_px
    sampling = Sampling(
        scheduler=settings.scheduler,
        steps=settings.steps,
        guidance=settings.guidance,
        negative_prompt=settings.negative_prompt,
        size_px=size_px,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    job = SynthesisJob(
        class_names=classes.names,
        template=template,
        pipeline=settings.pipeline,
        identity=pipeline_identity(settings.pipeline),
        sampling=sampling,
    )
    if settings.lora is not None:
        data = read_lora(settings.lora, rank=config.lora.rank)
        return SynthesisPlan(job=job.with_lora(data), lora=None)
    if not config.lora.enabled:
        return SynthesisPlan(job=job, lora=None)
    recipe = _lora_recipe(config, job, features)
    return SynthesisPlan(job=replace(job, lora_identity=recipe.fingerprint), lora=recipe)


def _lora_recipe(config: Config, job: SynthesisJob, features: Recipe) -> Recipe:
    """What the LoRA depends on: the images with their pseudo-labels, the pipeline, and how it is trained."""
    settings: dict[str, Any] = {
        "lora": config.lora,
        "class_names": list(job.class_names),
        "caption": job.template,
        "zero_shot_template": config.data.templates[0],
        "splits": [config.data.train_splits, config.data.test_splits],
        "size_px": job.sampling.size_px,
        "seed": job.sampling.seed,
    }
    return Recipe(kind="lora", settings=settings, inputs=(features.fingerprint,), weights=job.identity)


def make_synthetic(plan: Plan, features: Artefact) -> StageResult:
    """The synthetic images of a plan, made or found; the LoRA is trained only if images are missing.

    Args:
        plan: The run.
        features: The features of its source.
    """
    config = plan.config
    wanted = plan_synthesis(config, plan.classes, plan.features)
    job = wanted.job
    if wanted.lora is not None and not _all_there(plan, job):
        job = replace(job, lora=load_lora(make_lora(plan, features).artefact))
    return synthesize_stage(
        job,
        settings=config.synthesis,
        max_error_share=config.data.max_error_share,
        ray_settings=config.ray,
        store=plan.store,
    )


def make_lora(plan: Plan, features: Artefact) -> StageResult:
    """The LoRA of a plan, made or found.

    Raises:
        UserError: When the settings ask for none.
    """
    config = plan.config
    wanted = plan_synthesis(config, plan.classes, plan.features)
    if wanted.lora is None:
        raise UserError("Settings lora.enabled=false or synthesis.lora=… leave no LoRA to be trained: change them.")
    artefact = plan.store.artefact_of(wanted.lora)
    if artefact.complete():
        return StageResult(artefact=artefact, reused=True)
    chosen = choose_images(plan, features)
    size_px = wanted.job.sampling.size_px
    pixels = pixels_of_rows(plan, chosen.row_M.tolist(), size_px)
    kept = [at for at, row in enumerate(chosen.row_M.tolist()) if row in pixels]
    pixel_M3SS = np.stack([pixels[int(chosen.row_M[at])] for at in kept]) if kept else np.empty((0, 3, 8, 8), np.uint8)
    job = LoraJob(
        settings=config.lora,
        pipeline=config.synthesis.pipeline,
        captions=tuple(fill_template(wanted.job.template, name) for name in plan.classes.names),
        pixel_M3SS=torch.from_numpy(pixel_M3SS),
        class_M=chosen.class_M[kept],
        seed=config.synthesis.seed,
        checkpoint_every_s=config.train.checkpoint_every_s,
    )
    return tune_lora(wanted.lora, job, train=config.train, ray_settings=config.ray, store=plan.store)


def choose_images(plan: Plan, features: Artefact) -> ConfidentImages:
    """The training images that the frozen CLIP is surest of, with rows of the source; labels are not looked at."""
    config = plan.config
    table = load_features(features)
    row_N, _, _ = rows_of_splits(config.data, table)
    clip = load_clip(config.model.clip)
    class_CD = clip.class_embeddings(plan.classes.names, plan.classes.templates[:1])
    probability_NC = (clip.logit_scale * table.feature_ND[row_N] @ class_CD.T).softmax(dim=1)
    chosen = confident_images(probability_NC, config.lora.images_per_class)
    return ConfidentImages(row_M=table.row_N[row_N[chosen.row_M]], class_M=chosen.class_M)


def pixels_of_rows(plan: Plan, rows: Iterable[int], size_px: int) -> dict[int, np.ndarray]:
    """uint8 pixels [3, S, S] of some rows of the source, shorter side to `size_px` and cut to the middle."""
    spec = ImageSpec(size_px=size_px, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    firsts = [part.first_row for part in plan.source.parts]
    wanted: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        wanted[bisect_right(firsts, row) - 1].add(row)
    data = plan.config.data
    pixels: dict[int, np.ndarray] = {}
    for part, table in read_parts([plan.source.parts[index] for index in sorted(wanted)], data):
        for row, image in zip(table["row"].to_pylist(), table["image"], strict=True):
            if row in wanted[part.index] and image.is_valid:
                try:
                    pixels[row] = decode_image(
                        image.as_py(), spec, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes
                    )
                except BadImage:  # it changed since the features were made
                    continue
    return pixels


def _all_there(plan: Plan, job: SynthesisJob) -> bool:
    manifest = plan.store.artefact_of(job.recipe).find_manifest()
    wanted = set(job.parts(plan.config.synthesis.samples_per_class))
    return manifest is not None and wanted <= {shard.part for shard in manifest.shards}
