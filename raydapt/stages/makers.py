"""Who makes what: the one table from the kind of an artefact to the stage that makes it, or finds it in the store."""

from collections.abc import Callable, Mapping

from raydapt.artefacts import crops, features, lora, partial_labels, pixels, second, synthetic_images
from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.cluster.nodes import may_stay
from raydapt.data.sources import Source, resolve_source
from raydapt.models.language import engine_address
from raydapt.stages.annotate import make_partial_labels
from raydapt.stages.asking import answer_s
from raydapt.stages.crops import crops_stage
from raydapt.stages.features import features_stage
from raydapt.stages.given_features import given_features_stage
from raydapt.stages.pixels import pixels_stage
from raydapt.stages.place import StagePlace
from raydapt.stages.second import SELF_S, make_network, make_second, vision_s
from raydapt.stages.work import DECODE_S, encoding_s, is_small
from raydapt.store.artefact import StageResult
from raydapt.train.ray_train import training_place

Made = Mapping[str, StageResult]
"""What is there already, by name."""
Maker = Callable[[StagePlace, ArtefactSpec, Made], StageResult]
"""Makes one artefact, or finds it."""


def make_features(place: StagePlace, spec: ArtefactSpec, made: Made) -> StageResult:
    """The features of the run's images, encoded or as they were given, or of synthetic ones."""
    config, source = place.config, _source(place, spec, made)
    if source.width:
        return given_features_stage(
            source, place.features, data=config.data, ray_settings=config.ray, store=place.store
        )
    return features_stage(
        source,
        place.context,
        clip_name=config.model.clip,
        clip_identity=place.facts.clip_identity,
        image_spec=place.image_spec,
    )


def make_pixels(place: StagePlace, spec: ArtefactSpec, made: Made) -> StageResult:
    """The decoded images of the run, or synthetic ones."""
    image_spec = place.stored_spec if spec.job is None else spec.job
    return pixels_stage(_source(place, spec, made), place.context, image_spec=image_spec)


def make_crops(place: StagePlace, spec: ArtefactSpec, made: Made) -> StageResult:
    """The features of the run's images and of their crops."""
    return crops_stage(
        _source(place, spec, made),
        place.context,
        clip_name=place.config.model.clip,
        clip_identity=place.facts.clip_identity,
        image_spec=place.stored_spec,
        crops=spec.job,
    )


def make_captions(place: StagePlace, spec: ArtefactSpec, made: Made) -> StageResult:
    """Captions of the run's images."""
    from raydapt.stages import captioning  # language models import for seconds

    return captioning.make_captions(place, spec, made)


def make_lora(place: StagePlace, spec: ArtefactSpec, made: Made) -> StageResult:
    """The LoRA that synthetic images need."""
    from raydapt.stages import synthetic  # diffusers imports for seconds

    return synthetic.make_lora(place, spec, made)


def make_synthetic(place: StagePlace, spec: ArtefactSpec, made: Made) -> StageResult:
    """Synthetic images."""
    from raydapt.stages import synthetic  # diffusers imports for seconds

    return synthetic.make_synthetic(place, spec, made)


MAKERS: dict[str, Maker] = {
    features.KIND: make_features,
    pixels.KIND: make_pixels,
    crops.KIND: make_crops,
    partial_labels.KIND: make_partial_labels,
    second.SELF_KIND: make_network,
    second.KIND: make_second,
    IMAGE_CAPTIONS: make_captions,
    GROUP_CAPTIONS: make_captions,
    lora.KIND: make_lora,
    synthetic_images.KIND: make_synthetic,
}


def where_made(place: StagePlace, spec: ArtefactSpec, share: float = 1.0) -> str:
    """Where what is missing of an artefact will be made, in words: the rule that `raydapt.stages.run` goes by.

    Args:
        place: Where and with what.
        spec: What is to be made.
        share: How much of it is missing, from 0 to 1.
    """
    if spec.kind in (lora.KIND, second.SELF_KIND):
        return training_place(place.config.train, place.config.ray)
    given = (spec.kind == features.KIND and place.source.width) or isinstance(spec.job, Source)
    if (row_s_of := _ROW_S.get(spec.kind)) is None or given:
        return "in this process"
    row_s, rows = row_s_of(place, spec), place.source.rows
    if spec.kind == synthetic_images.KIND:
        rows = len(spec.parts or ()) * place.config.synthesis.batch_size
    seconds = None if row_s is None or rows is None else row_s * rows * share
    return "in this process" if may_stay(place.config.ray) and is_small(seconds) else "on Ray"


def _feature_s(place: StagePlace, spec: ArtefactSpec) -> float:
    return DECODE_S + encoding_s(place.config.model.clip)


def _second_s(place: StagePlace, spec: ArtefactSpec) -> float:
    return DECODE_S + (vision_s(spec.job.name) if isinstance(spec.job, second.NamedEncoder) else SELF_S)


def _crop_s(place: StagePlace, spec: ArtefactSpec) -> float:
    return DECODE_S + encoding_s(place.config.model.clip, views=1 + spec.job.crops)


def _caption_s(place: StagePlace, spec: ArtefactSpec) -> float | None:
    settings = place.config.caption
    return answer_s(settings, engine_address(settings, setting="caption"), images=True)


def _drawn_s(place: StagePlace, spec: ArtefactSpec) -> float | None:
    from raydapt.stages.synthesis import image_s  # diffusers imports for seconds

    return image_s(spec.job[0].job)


_ROW_S: dict[str, Callable[[StagePlace, ArtefactSpec], float | None]] = {
    features.KIND: _feature_s,
    pixels.KIND: lambda place, spec: DECODE_S,
    crops.KIND: _crop_s,
    second.KIND: _second_s,
    IMAGE_CAPTIONS: _caption_s,
    GROUP_CAPTIONS: _caption_s,
    synthetic_images.KIND: _drawn_s,
}


def _source(place: StagePlace, spec: ArtefactSpec, made: Made) -> Source:
    """The images that an artefact is about; finished images of the store are an image set like any other."""
    if spec.of is None:
        return place.source
    artefact = made[spec.of].artefact
    address = f"{place.config.store.rstrip('/')}/{artefact.kind}/{artefact.fingerprint}"
    return resolve_source(address, rows_per_part=place.config.features.rows_per_part)
