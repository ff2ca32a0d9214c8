"""From a plan to synthetic images: what is made, the LoRA that it may need first, and the images that teach the LoRA.

    features of the frozen CLIP -> confident pseudo-labels -> LoRA of the pipeline -> images of every class

Everything has a name before it is made: the recipe of the images holds that of the LoRA, and that of the features.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from raydapt.artefacts.features import load_features
from raydapt.artefacts.lora import load_lora
from raydapt.artefacts.synthesis import SynthesisJob, SynthesisPlan, plan_synthesis
from raydapt.data.classes import fill_template
from raydapt.data.decode import BadImage, ImageSpec, decode_image
from raydapt.data.reread import reread_images
from raydapt.errors import UserError
from raydapt.models.clip import load_clip
from raydapt.run.plan import Plan, rows_of_splits
from raydapt.stages.synthesis import synthesize_stage
from raydapt.store.artefact import Artefact, StageResult
from raydapt.train.lora import ConfidentImages, LoraJob, confident_images, tune_lora


def make_synthetic(plan: Plan, features: Artefact) -> StageResult:
    """The synthetic images of a plan, made or found; the LoRA is trained only if images are missing.

    Args:
        plan: The run.
        features: The features of its source.
    """
    config = plan.config
    wanted = _synthesis_of(plan)
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
    wanted = _synthesis_of(plan)
    if wanted.lora is None:
        raise UserError("Settings lora.enabled=false or synthesis.lora=… leave no LoRA to be trained: change them.")
    artefact = plan.store.artefact_of(wanted.lora)
    if artefact.complete():
        return StageResult(artefact=artefact, reused=True)
    chosen = choose_images(plan, features)
    size_px = wanted.job.sampling.size_px
    kept, pixel_M3SS = _pixels(plan, chosen.row_M.tolist(), size_px)
    job = LoraJob(
        settings=config.lora,
        pipeline=config.synthesis.pipeline,
        captions=tuple(fill_template(wanted.job.template, name) for name in plan.classes.names),
        pixel_M3SS=pixel_M3SS,
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


def _pixels(plan: Plan, rows: Sequence[int], size_px: int) -> tuple[list[int], Tensor]:
    """Some rows of the source, shorter side to `size_px` and cut to the middle.

    Returns:
        Positions in `rows` of the images that can be read, ascending, and their uint8 pixels [M, 3, S, S].
    """
    spec = ImageSpec(size_px=size_px, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    data, pixels = plan.config.data, dict[int, np.ndarray]()
    for position, image in reread_images(plan.source, rows, data):
        try:
            pixels[position] = decode_image(
                image, spec, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes
            )
        except BadImage:  # it changed since the features were made
            continue
    kept = sorted(pixels)
    pixel_M3SS = np.stack([pixels[at] for at in kept]) if kept else np.empty((0, 3, size_px, size_px), np.uint8)
    return kept, torch.from_numpy(pixel_M3SS)


def _synthesis_of(plan: Plan) -> SynthesisPlan:
    config = plan.config
    return plan_synthesis(config.synthesis, config.lora, config.data, plan.classes, plan.features)


def _all_there(plan: Plan, job: SynthesisJob) -> bool:
    manifest = plan.store.artefact_of(job.recipe).find_manifest()
    wanted = set(job.parts(plan.config.synthesis.samples_per_class))
    return manifest is not None and wanted <= {shard.part for shard in manifest.shards}
