"""A small set with its features, made in this process, for trials that are not to wait for Ray."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.artefacts.features import features_recipe
from raydapt.data.sources import read_part, resolve_source
from raydapt.methods.configuration import config_from_tree
from raydapt.methods.table import GROUPS, setting_groups
from raydapt.run.plan import make_plan
from raydapt.settings.config import Config
from raydapt.settings.groups import DataSettings, StageSettings
from raydapt.settings.tree import merge_trees
from raydapt.stages.commit import TOLD
from raydapt.stages.context import ActorPlan
from raydapt.stages.features import Encoder
from raydapt.stages.reading import read_and_decode
from raydapt.stages.run import whole_parts

IMAGES = 120
QUICK = {
    "method": "cpl",
    "cpl": {"rounds": 2, "alpha": 0.75, "beta": 0.5},
    "train": {"max_steps_per_round": 2, "batch_size": 16, "learning_rate": 0.1},
    "space": {"train.learning_rate": {"loguniform": [0.01, 1.0]}, "cpl.rounds": {"choice": [1, 2]}},
    "tune": {"trials": 4},
}


def digits(path: Path, labels: str = "true") -> str:
    """Some digits as a Parquet file; labels are `true`, `turned` by one class, or `absent`."""
    table = read_part(resolve_source("digits", rows_per_part=IMAGES).parts[0], DataSettings())
    given = [str((int(label) + 1) % 10) if labels == "turned" else label for label in table["label"].to_pylist()]
    split = ["train" if row % 3 else "test" for row in range(table.num_rows)]
    columns = {"image": table["image"], "split": pa.array(split)}
    if labels != "absent":
        columns["label"] = pa.array(given)
    pq.write_table(pa.table(columns), path)
    return str(path)


def job(folder: Path, source: str, **settings: Any) -> Config:
    """A job over the digits, its features made."""
    places = {"runs": str(folder / "runs"), "store": str(folder / "store"), "ray": {"address": "local", "cpus": 2}}
    data = {"source": source, "class_names": "digits"}
    used = setting_groups(str(settings.get("method", "cpl")), settings)
    quick = {name: value for name, value in QUICK.items() if name not in GROUPS or name in used}
    config = config_from_tree(merge_trees(quick, {**places, "data": data, **settings}))
    plan = make_plan(config)
    recipe = features_recipe(plan.source, plan.clip_identity, plan.image_spec, plan.config.data)
    artefact = plan.store.artefact_of(recipe)
    if not artefact.complete():
        encoder = Encoder("mini", plan.clip_identity, StageSettings(), ActorPlan(actors=1, cpus=1, gpus=0))
        for part in plan.source.parts:
            rows = pa.table({"parts": [pickle.dumps((part,))]})
            (packed,) = read_and_decode(rows, data=plan.config.data, spec=plan.image_spec)
            ((_, table),) = whole_parts([encoder(packed)])
            artefact.commit_part(part.index, table.drop_columns(list(TOLD)))
        artefact.finish(recipe, [part.index for part in plan.source.parts], {}, {})
    return config
