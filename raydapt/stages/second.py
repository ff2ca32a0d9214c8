"""Features of a second encoder as an artefact whose rows are those of the run's own features.

Legend: N images, M features of a file, D width of the feature.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydapt.artefacts.features import load_features, rows_of_splits
from raydapt.artefacts.pixels import load_pixels
from raydapt.artefacts.second import SECOND_PIXELS, SELF_KIND, NamedEncoder, check_order, load_network, network_bytes
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.data.decode import ImageSpec
from raydapt.data.embeddings import read
from raydapt.data.parts import Source
from raydapt.errors import UserError
from raydapt.models.clip import Clip
from raydapt.models.self_supervised import SelfEncoder
from raydapt.models.vision_encoder import VisionEncoder, shared_vision
from raydapt.progress import steps_told
from raydapt.stages.features import Encoder, encoding_stage
from raydapt.stages.place import StagePlace, is_there
from raydapt.stages.run import Parts, Stage, run_stage
from raydapt.stages.work import tower_s
from raydapt.store.artefact import StageResult
from raydapt.train.self_supervised import SelfJob, drawn, train_self

NOT_IN_FILE = "not_in_file"
"""The error of an image whose id the file of features lacks."""
_FEATURES = "features"


class VisionActor(Encoder):
    """The actor of `raydapt.stages.features.features_stage` with another model."""

    setting = "model.second"

    def load(self, name: str, device: str) -> Clip | VisionEncoder:
        """The model of a name."""
        return shared_vision(name, device=device)

    @classmethod
    def image_s(cls, *arguments: Any) -> float:
        """Estimated seconds of an image."""
        return vision_s(arguments[0])


class SelfActor(Encoder):
    """The same with the network that learned the set's own images."""

    def __init__(self, content: bytes, image_spec: ImageSpec, *arguments: Any, **named: Any) -> None:
        self._content, self._spec = content, image_spec
        super().__init__(*arguments, **named)

    def load(self, name: str, device: str) -> SelfEncoder:
        """The network; its name is its fingerprint."""
        return load_network(self._content, self._spec, name).to(device)

    @classmethod
    def image_s(cls, *arguments: Any) -> float:
        """Estimated seconds of an image."""
        return SELF_S


SELF_S = 5e-4
"""Seconds that the small network takes for an image."""


def vision_s(name: str) -> float:
    """Estimated seconds that a named model takes for an image."""
    model = shared_vision(name)
    return tower_s(model.model.visual if isinstance(model, Clip) else model.model, model.image_spec.size_px)


def make_network(place: StagePlace, spec: ArtefactSpec, made: Mapping[str, StageResult]) -> StageResult:
    """The network of ``model.second: self``, trained on the images that are adapted to, or found."""
    assert spec.recipe is not None
    config, artefact = place.config, place.store.artefact_of(spec.recipe)
    if artefact.complete():
        return StageResult(artefact=artefact, reused=True)
    row_N, _, _ = rows_of_splits(config.data, load_features(made[_FEATURES].artefact, place.source))
    if len(row_N) < 2:
        raise UserError(f"Setting model.second='self' has {len(row_N)} image to learn from: set it to none.")
    position_D = drawn(config.second, len(row_N))
    pixels = load_pixels(made[SECOND_PIXELS].artefact, config.train.cache_gb)
    job = SelfJob(
        settings=config.second,
        n_images=len(row_N),
        position_D=position_D,
        pixel_D3SS=pixels[row_N[position_D]],
        checkpoint_every_s=config.train.checkpoint_every_s,
    )
    with steps_told("self_encoder", total=config.second.steps, show=config.ray.progress) as log:
        return train_self(spec.recipe, job, train=config.train, ray_settings=config.ray, store=place.store, log=log)


def make_second(place: StagePlace, spec: ArtefactSpec, made: Mapping[str, StageResult]) -> StageResult:
    """The second encoder's features of the run's images, made or found."""
    assert spec.recipe is not None
    context, job = place.context, spec.job
    if isinstance(job, Source):
        return _from_file(place, spec, made)
    if is_there(place, spec):
        return StageResult(artefact=place.store.artefact_of(spec.recipe), reused=True)
    arguments: tuple[Any, ...]
    actor: type[Encoder]
    if isinstance(job, NamedEncoder):
        actor, arguments = VisionActor, (job.name, job.identity, context.settings)
    else:
        network = made[SELF_KIND].artefact
        print_ = network.fingerprint
        content = network_bytes(network)
        actor, arguments = SelfActor, (content, job.image_spec, print_, print_, context.settings)
    return encoding_stage(place.source, context, actor, arguments, recipe=spec.recipe, image_spec=job.image_spec)


def _from_file(place: StagePlace, spec: ArtefactSpec, made: Mapping[str, StageResult]) -> StageResult:
    given: Source = spec.job
    assert spec.recipe is not None
    features = made[_FEATURES].artefact

    def here(pending: Sequence[int]) -> Parts:
        ours = _rows_of(features.iter_tables(["row", "id", "path"]))
        theirs = _read_all(given)
        index_N = _matched(ours.id_N, theirs, given, place)
        start = 0
        for shard in features.manifest.shards:
            stop = start + shard.rows
            if shard.part in pending:
                yield shard.part, _table(ours, theirs, index_N, slice(start, stop))
            start = stop

    stage = Stage(
        recipe=spec.recipe,
        parts=[shard.part for shard in features.manifest.shards],
        dataset_of=None,
        here=here,
        rows=features.manifest.rows,
        max_error_share=place.config.data.max_error_share,
        ray=place.config.ray,
        unit="second features",
    )
    return run_stage(place.store, stage)


@dataclass(frozen=True)
class _Images:
    """The run's images."""

    row_N: list[int]
    id_N: list[str]
    path_N: list[str]


@dataclass(frozen=True)
class _Given:
    """What a file holds."""

    id_M: list[str]
    error_M: list[str | None]
    feature_MD: npt.NDArray[np.float32]


def _rows_of(tables: Iterator[pa.Table]) -> _Images:
    table = pa.concat_tables(tables)
    return _Images(*(table[name].to_pylist() for name in ("row", "id", "path")))


def _read_all(given: Source) -> _Given:
    id_M, error_M = list[str](), list[str | None]()
    feature_MD = np.zeros((given.rows or 0, given.width), dtype=np.float32)
    for _, table in read(given.parts):
        start, column = len(id_M), table["feature"].combine_chunks()
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        feature_MD[start : start + len(valid)][valid] = column.flatten().to_numpy().reshape(-1, given.width)
        id_M += table["id"].to_pylist()
        error_M += table["error"].to_pylist()
    return _Given(id_M, error_M, feature_MD)


def _matched(id_N: list[str], theirs: _Given, given: Source, place: StagePlace) -> npt.NDArray[np.int64]:
    """Which feature belongs to each image, -1 for none: by id where the file has ids, else by order.

    Raises:
        UserError: If no image is in the file, an id stands for two features, or lengths differ.
    """
    config = place.config
    if not given.has_ids:
        check_order(given, len(id_N), config)
        return np.arange(len(id_N))
    place_of: dict[str, int] = {}
    for index, id_ in enumerate(theirs.id_M):
        first = place_of.setdefault(id_, index)
        if first != index and not np.allclose(theirs.feature_MD[first], theirs.feature_MD[index], atol=1e-3):
            raise UserError(
                f"model.second={config.model.second!r} has two different features with the id {id_!r}: give every "
                "image an id of its own, or leave the column out to go by order."
            )
    index_N = np.array([place_of.get(id_, -1) for id_ in id_N], dtype=np.int64)
    if len(index_N) and not (index_N >= 0).any():
        raise UserError(
            f"model.second={config.model.second!r} has ids such as {theirs.id_M[0]!r}, and "
            f"data.source={config.data.source!r} such as {id_N[0]!r}: give the ids that 'raydapt features' writes, or "
            "leave the column 'id' out to go by order."
        )
    return index_N


def _table(ours: _Images, theirs: _Given, index_N: npt.NDArray[np.int64], rows: slice) -> pa.Table:
    index_B = index_N[rows]
    errors = [NOT_IN_FILE if index < 0 else theirs.error_M[index] for index in index_B.tolist()]
    bad_B = np.array([error is not None for error in errors], dtype=bool)
    feature_BD = theirs.feature_MD[index_B.clip(0)]
    values = pa.array(np.ascontiguousarray(feature_BD).reshape(-1))
    return pa.table(
        {
            "row": pa.array(ours.row_N[rows], pa.int64()),
            "id": ours.id_N[rows],
            "path": ours.path_N[rows],
            "error": pa.array(errors, pa.string()),
            "feature": pa.FixedSizeListArray.from_arrays(values, feature_BD.shape[1], mask=pa.array(bad_B)),
        }
    )
