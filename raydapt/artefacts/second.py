"""Features of a second encoder of the same images: where they come from, and how they are read.

Legend: N images, D width of the feature.
"""

import torch
from torch import Tensor

from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.data import embeddings
from raydapt.data.files import list_data
from raydapt.data.parts import Source
from raydapt.errors import UserError
from raydapt.settings.config import Config
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "second"
"""The kind of artefact, and its name within a run: unit vectors of every image, in the order of the source."""


def second_specs(config: Config, facts: PlanFacts) -> tuple[ArtefactSpec, ...]:
    """What is made for `config.model.second`, the features last.

    Raises:
        UserError: If it names no features, or features that cannot be of these images.
    """
    given = _given_features(config)
    _check_rows(given, config, facts.source)
    return (_given_spec(given, facts.source),)


def load_second(artefact: Artefact) -> Tensor:
    """float32 unit vectors [N, D] in the order of the source; zeros for an image without one."""
    feature_ND, start = torch.zeros(0, 0), 0
    for table in artefact.iter_tables(["feature"]):
        column = table["feature"].combine_chunks()
        if not start:
            feature_ND = torch.zeros(artefact.manifest.rows, column.type.list_size)
        valid_M = torch.from_numpy(column.is_valid().to_numpy(zero_copy_only=False).copy())
        value_MD = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        feature_ND[start : start + table.num_rows][valid_M] = torch.from_numpy(value_MD.copy())
        start += table.num_rows
    return feature_ND


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


def _check_rows(given: Source, config: Config, source: Source) -> None:
    """Refuses features without ids that are more or fewer than the images, where these are counted already.

    Raises:
        UserError: See above.
    """
    if given.has_ids or source.rows is None:
        return
    check_order(given, source.rows, config)


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
