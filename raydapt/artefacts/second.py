"""Features of a second encoder of the same images: where they come from, and how they are read.

Legend: N images, D width of the feature.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load

from raydapt.artefacts.features import KIND as FEATURES
from raydapt.artefacts.features import encoding_settings, image_settings
from raydapt.artefacts.pixels import KIND as PIXELS
from raydapt.artefacts.pixels import pixels_recipe
from raydapt.artefacts.rows import Features, held, room_for
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.data import embeddings
from raydapt.data.decode import ImageSpec
from raydapt.data.files import is_pattern, list_data
from raydapt.data.parts import Source
from raydapt.errors import UserError
from raydapt.models.self_supervised import SelfEncoder, SmallNet
from raydapt.models.vision_encoder import shared_vision
from raydapt.settings.config import Config
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "second"
"""The kind of artefact, and its name within a run: unit vectors of every image, in the order of the source."""
SELF_KIND = "self_encoder"
"""The network of ``model.second: self``."""
SECOND_PIXELS = "second_pixels"
"""The images that it learns from, small."""
SELF = "self"
_FEATURE_SUFFIXES = (".parquet", ".npy", ".npz")
_VIEW_S = 9e-4
"""Seconds of one core that learning from a view of 32 px takes."""


@dataclass(frozen=True)
class NamedEncoder:
    """A model of a library, by its name."""

    name: str
    identity: str
    image_spec: ImageSpec


@dataclass(frozen=True)
class SelfEncoding:
    """The network that learned the set's own images."""

    image_spec: ImageSpec


def second_specs(config: Config, facts: PlanFacts) -> tuple[ArtefactSpec, ...]:
    """What is made for `config.model.second`, the features last.

    Raises:
        UserError: If it names no features and no model, or features that cannot be of these images.
    """
    if _names_features(config.model.second):
        given = _given_features(config)
        if not given.has_ids and facts.source.rows is not None:
            check_order(given, facts.source.rows, config)
        return (_given_spec(given, facts.source),)
    if facts.source.width:
        raise UserError(
            f"Setting model.second={config.model.second!r} looks at images, and data.source={config.data.source!r} "
            "holds features: give a file of features, or none."
        )
    return _self_specs(config, facts) if config.model.second == SELF else (_encoded_spec(config, facts),)


def _names_features(name: str) -> bool:
    """Whether a name is that of features: by its suffix, as an address, or a folder without a model's description."""
    folder = Path(name).expanduser()
    described = any((folder / file).is_file() for file in ("config.json", "open_clip_config.json"))
    return (
        name.lower().endswith(_FEATURE_SUFFIXES)
        or "://" in name
        or is_pattern(name)
        or (name not in (SELF, "mini") and folder.is_dir() and not described)
    )


def _encoded_spec(config: Config, facts: PlanFacts) -> ArtefactSpec:
    model = shared_vision(config.model.second)
    recipe = Recipe(
        kind=KIND,
        settings=image_settings(model.image_spec, config.data) | encoding_settings(config.features),
        inputs=(facts.source.identity,),
        weights=model.identity,
    )
    job = NamedEncoder(config.model.second, model.identity, model.image_spec)
    return ArtefactSpec(name=KIND, kind=KIND, recipe=recipe, job=job)


def _self_specs(config: Config, facts: PlanFacts) -> tuple[ArtefactSpec, ...]:
    source, data, settings = facts.source, config.data, config.second
    image_spec = ImageSpec(size_px=settings.size_px)
    pixels = pixels_recipe(source, image_spec, data, config.features.stored_pixels)
    learned = {"learned": asdict(settings), "splits": [data.train_splits, data.test_splits]}
    network = Recipe(kind=SELF_KIND, settings=learned, inputs=(pixels.fingerprint,))
    features = Recipe(
        kind=KIND,
        settings=image_settings(image_spec, data) | encoding_settings(config.features),
        inputs=(source.identity,),
        weights=network.fingerprint,
    )
    views = 2 * settings.steps * min(settings.batch_size, source.rows or settings.batch_size)
    minutes = _VIEW_S * views * (settings.size_px / 32) ** 2 / 60
    return (
        ArtefactSpec(name=SECOND_PIXELS, kind=PIXELS, recipe=pixels, step=True, job=image_spec),
        ArtefactSpec(
            name=SELF_KIND,
            kind=SELF_KIND,
            recipe=network,
            depends_on=(FEATURES, SECOND_PIXELS),
            step=True,
            cost=f"about {minutes:.1f} minutes of one core",
        ),
        ArtefactSpec(name=KIND, kind=KIND, recipe=features, depends_on=(SELF_KIND,), job=SelfEncoding(image_spec)),
    )


def load_network(content: bytes, image_spec: ImageSpec, identity: str) -> SelfEncoder:
    """The network that a finished training left.

    Args:
        content: Of its artefact (see `network_bytes`).
        image_spec: How images reach it.
        identity: Its fingerprint.
    """
    tensors = load(content)
    mean_W = tensors.pop("mean")
    net = SmallNet()
    net.load_state_dict(tensors)
    return SelfEncoder(net, mean_W, image_spec, identity)


def network_bytes(artefact: Artefact) -> bytes:
    """What a finished training left, to be sent to actors."""
    content: bytes = artefact.read(["content"])["content"][0].as_py()
    return content


def load_second(artefact: Artefact) -> Features:
    """Unit vectors [N, D] in the order of the source, held as the features are; zeros for an image without one."""
    feature_ND, start = torch.zeros(0, 0), 0
    for table in artefact.iter_tables(["feature"]):
        column = table["feature"].combine_chunks()
        if not start:
            feature_ND = room_for(artefact.manifest.rows, column.type.list_size)
        valid_M = torch.from_numpy(column.is_valid().to_numpy(zero_copy_only=False).copy())
        value_MD = torch.from_numpy(column.flatten().to_numpy().reshape(-1, column.type.list_size).copy())
        feature_ND[start : start + table.num_rows][valid_M] = value_MD.to(feature_ND.dtype)
        start += table.num_rows
    return held(feature_ND)


def _given_features(config: Config) -> Source:
    """The file or folder of features that ``model.second`` names."""
    name = config.model.second
    try:
        found = list_data(name)
        if not embeddings.holds_features(found):
            raise UserError(f"model.second={name!r} holds no features: give Parquet with a column 'feature', or .npy.")
        return embeddings.plan(found, rows_per_part=config.features.rows_per_part, limit=None)
    except UserError as error:
        raise UserError(str(error).replace("data.source=", "model.second=")) from None


def check_order(given: Source, rows: int, config: Config) -> None:
    """Refuses features without ids that cannot be those of so many images in their order.

    Raises:
        UserError: See above.
    """
    found = given.rows or 0
    if found == rows or (config.data.limit == rows and found > rows):
        return
    raise UserError(
        f"model.second={config.model.second!r} has {found:,} features without ids, and "
        f"data.source={config.data.source!r} has {rows:,} images: give one feature of each image in the order of the "
        "source, or a column 'id' with the ids that 'raydapt features' writes."
    )


def _given_spec(given: Source, source: Source) -> ArtefactSpec:
    settings = {"given": True, "width": given.width}
    recipe = Recipe(kind=KIND, settings=settings, inputs=(source.identity, given.identity))
    return ArtefactSpec(name=KIND, kind=KIND, recipe=recipe, depends_on=("features",), job=given)
