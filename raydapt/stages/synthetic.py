"""From a plan to synthetic images: what is made, the LoRA that it may need first, and the images that teach the LoRA.

    features of the frozen CLIP -> confident pseudo-labels -> LoRA of the pipeline -> images of every class

Everything has a name before it is made: the recipe of the images holds that of the LoRA, and that of the features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from raydapt.artefacts.features import load_features, rows_of_splits
from raydapt.artefacts.lora import KIND as LORA
from raydapt.artefacts.lora import load_lora
from raydapt.artefacts.rows import rows_of
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.cluster.nodes import address_of
from raydapt.data.classes import fill_template
from raydapt.data.decode import BadImage, ImageSpec, decode_image
from raydapt.data.reread import reread_images
from raydapt.methods.best_classes import best_classes
from raydapt.methods.class_prior import class_prior
from raydapt.methods.open_set import kept_rows
from raydapt.models.clip import load_clip
from raydapt.models.quantized import require_fp8_units, require_torchao
from raydapt.progress import steps_told
from raydapt.settings.groups import DenoiserPrecision, RaySettings
from raydapt.stages.place import StagePlace, is_there
from raydapt.stages.synthesis import synthesize_stage
from raydapt.stages.work import device_kind
from raydapt.store.artefact import Artefact, StageResult
from raydapt.train.lora import ConfidentImages, LoraJob, confident_images, tune_lora


def make_synthetic(place: StagePlace, spec: ArtefactSpec, made: Mapping[str, StageResult]) -> StageResult:
    """The synthetic images of a run, made or found; the LoRA is read only if images are missing.

    Args:
        place: Where and with what.
        spec: The images; `ArtefactSpec.job` is what is made (`SynthesisPlan`) and how many of each class.
        made: With the LoRA, where the images need one and some of them are missing.
    """
    wanted, samples = spec.job
    config, job = place.config, wanted.job
    if wanted.lora is not None and not is_there(place, spec):
        job = replace(job, lora=load_lora(made[LORA].artefact))
    return synthesize_stage(
        job,
        settings=replace(config.synthesis, samples_per_class=samples),
        max_error_share=config.data.max_error_share,
        ray_settings=config.ray,
        store=place.store,
    )


def make_lora(place: StagePlace, spec: ArtefactSpec, made: Mapping[str, StageResult]) -> StageResult:
    """The LoRA of a run, made or found.

    Args:
        place: Where and with what.
        spec: The LoRA; `ArtefactSpec.job` is the `SynthesisPlan` that it is for.
        made: With the features of the images.
    """
    assert spec.recipe is not None
    config, wanted = place.config, spec.job
    artefact = place.store.artefact_of(spec.recipe)
    if artefact.complete():
        return StageResult(artefact=artefact, reused=True)
    _require_precision(wanted.job.sampling.precision, config.ray)  # before hours of training, not after
    chosen = choose_images(place, made["features"].artefact, taught=wanted.taught)
    size_px = wanted.job.sampling.size_px
    kept, pixel_M3SS = _pixels(place, chosen.row_M.tolist(), size_px)
    job = LoraJob(
        settings=config.lora,
        pipeline=config.synthesis.pipeline,
        captions=tuple(fill_template(wanted.job.template, name) for name in place.classes.names),
        pixel_M3SS=pixel_M3SS,
        class_M=chosen.class_M[kept],
        seed=config.synthesis.seed,
        checkpoint_every_s=config.train.checkpoint_every_s,
    )
    with steps_told(LORA, total=config.lora.steps, show=config.ray.progress) as log:
        return tune_lora(spec.recipe, job, train=config.train, ray_settings=config.ray, store=place.store, log=log)


def _require_precision(precision: DenoiserPrecision, ray_settings: RaySettings) -> None:
    """Refuses what this machine cannot multiply in, where no cluster makes the images."""
    require_torchao(precision)
    if address_of(ray_settings) == "local":
        require_fp8_units(precision, torch.device(device_kind()))


def choose_images(place: StagePlace, features: Artefact, *, taught: tuple[int, ...] | None = None) -> ConfidentImages:
    """The training images that the frozen CLIP is surest of, with rows of the source; labels are not looked at.

    Args:
        place: Where and with what.
        features: Of the images.
        taught: Only images that the frozen CLIP takes for one of these classes; None: for any.
    """
    config = place.config
    table = load_features(features, place.source)
    row_N, _, _ = rows_of_splits(config.data, table)
    clip = load_clip(config.model.clip)
    class_CD = clip.class_embeddings(place.classes.names, place.classes.templates[:1])
    row_N = kept_rows(config.data, table.feature_ND, row_N, class_CD.cpu())
    prior = class_prior(config.data.class_prior, place.classes.names)

    def probabilities(feature_BD: Tensor) -> Tensor:
        return prior.weighed((clip.logit_scale * feature_BD @ class_CD.T).softmax(dim=1))

    best = best_classes(rows_of(table.feature_ND, row_N), probabilities)
    chosen = confident_images(*best, len(class_CD), config.lora.images_per_class, prior)
    if taught is not None:
        is_taught_M = torch.isin(chosen.class_M, torch.tensor(taught))
        chosen = ConfidentImages(row_M=chosen.row_M[is_taught_M], class_M=chosen.class_M[is_taught_M])
    return ConfidentImages(row_M=table.row_N[row_N[chosen.row_M]], class_M=chosen.class_M)


def _pixels(place: StagePlace, rows: Sequence[int], size_px: int) -> tuple[list[int], Tensor]:
    """Some rows of the source, shorter side to `size_px` and cut to the middle.

    Returns:
        Positions in `rows` of the images that can be read, ascending, and their uint8 pixels [M, 3, S, S].
    """
    spec = ImageSpec(size_px=size_px, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    data, pixels = place.config.data, dict[int, np.ndarray]()
    for position, image in reread_images(place.source, rows, data):
        try:
            pixels[position] = decode_image(
                image, spec, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes
            )
        except BadImage:  # it changed since the features were made
            continue
    kept = sorted(pixels)
    pixel_M3SS = np.stack([pixels[at] for at in kept]) if kept else np.empty((0, 3, size_px, size_px), np.uint8)
    return kept, torch.from_numpy(pixel_M3SS)
