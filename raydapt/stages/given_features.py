"""Features that others computed, as the artefact that encoding images would have made.

They are read, brought to unit length and committed part by part: no model, so no actors and no Ray. Everything that
reads features (`raydapt.stages.features.load_features`) finds the same columns.
"""

from collections.abc import Sequence

from raydapt.data.embeddings import read
from raydapt.data.sources import Source
from raydapt.settings.groups import DataSettings, RaySettings
from raydapt.stages.run import Parts, Stage, run_stage
from raydapt.store.artefact import StageResult, Store
from raydapt.store.fingerprint import Recipe


def given_features_stage(
    source: Source, recipe: Recipe, *, data: DataSettings, ray_settings: RaySettings, store: Store
) -> StageResult:
    """Takes the features of a source into the store, or finds them there; memory does not grow with the source.

    Args:
        source: Features, resolved with ``features.rows_per_part`` and ``data.limit``.
        recipe: See `raydapt.artefacts.features.features_recipe`.
        data: The largest share of rows whose vector cannot be used.
        ray_settings: Whether to show progress; no cluster is started.
        store: Where artefacts live.

    Raises:
        UserError: See `raydapt.stages.run.run_stage`.
    """
    part_of = {part.index: part for part in source.parts}

    def here(pending: Sequence[int]) -> Parts:
        for part, table in read([part_of[index] for index in pending]):
            yield part.index, table

    stage = Stage(
        recipe=recipe,
        parts=list(part_of),
        dataset_of=None,
        here=here,
        rows=source.rows,
        max_error_share=data.max_error_share,
        ray=ray_settings,
        unit="features",
    )
    return run_stage(store, stage)
