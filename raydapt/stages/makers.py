"""Who makes what: the one table from the kind of an artefact to the stage that makes it, or finds it in the store."""

from collections.abc import Callable, Mapping

from raydapt.artefacts import crops, features, lora, partial_labels, pixels, synthetic_images
from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.data.sources import Source, resolve_source
from raydapt.stages.annotate import make_partial_labels
from raydapt.stages.captioning import make_captions
from raydapt.stages.crops import crops_stage
from raydapt.stages.features import features_stage
from raydapt.stages.given_features import given_features_stage
from raydapt.stages.pixels import pixels_stage
from raydapt.stages.place import StagePlace
from raydapt.stages.synthetic import make_lora, make_synthetic
from raydapt.store.artefact import StageResult

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
    return pixels_stage(_source(place, spec, made), place.context, image_spec=place.stored_spec)


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


MAKERS: dict[str, Maker] = {
    features.KIND: make_features,
    pixels.KIND: make_pixels,
    crops.KIND: make_crops,
    partial_labels.KIND: make_partial_labels,
    IMAGE_CAPTIONS: make_captions,
    GROUP_CAPTIONS: make_captions,
    lora.KIND: make_lora,
    synthetic_images.KIND: make_synthetic,
}


def _source(place: StagePlace, spec: ArtefactSpec, made: Made) -> Source:
    """The images that an artefact is about; finished images of the store are an image set like any other."""
    if spec.of is None:
        return place.source
    artefact = made[spec.of].artefact
    address = f"{place.config.store.rstrip('/')}/{artefact.kind}/{artefact.fingerprint}"
    return resolve_source(address, rows_per_part=place.config.features.rows_per_part)
