"""A finished run on features whose images lie beside them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.store.run_record import Run
from tests.data.features import fixed, unit, write

NAMES = ["cat", "dog", "<b>sea & lake</b>"]
IMAGES = 90


def make_run(folder: Path, method: str = "zero_shot", *, paths: bool = True) -> Run:
    """Features around three directions, each with an image of a colour of its class; classes in turn."""
    generator = np.random.default_rng(0)
    centre_CD = unit(generator.standard_normal((3, 16)))
    class_N = np.arange(IMAGES) % 3
    feature_ND = unit(centre_CD[class_N] + 0.25 * generator.standard_normal((IMAGES, 16))).astype(np.float32)
    columns = {}
    if paths:
        columns["path"] = [f"images/{i}.png" for i in range(IMAGES)]
        (folder / "images").mkdir(exist_ok=True)
        for i, name in enumerate(columns["path"]):
            Image.new("RGB", (24, 18), ["red", "green", "blue"][class_N[i]]).save(folder / name)
    pq.write_table(pa.table({"feature": fixed(feature_ND), **columns}), folder / "x.parquet")
    class_CD = unit(centre_CD + 0.3 * generator.standard_normal((3, 16))).astype(np.float32)
    write(folder / "classes.parquet", class_CD, name=NAMES, template=["mean of templates"] * 3)
    places = [f"runs={folder}/runs", f"store={folder}/store", "ray.progress=false"]
    given = [f"data.source={folder}/x.parquet", f"data.class_features={folder}/classes.parquet"]
    return pipeline.run(load_config(None, [f"method={method}", *places, *given]))


def spoil_zero_shot(record: Run) -> None:
    """Turns every third of zero-shot's predictions into another class, so that there is much to choose between."""
    table = pq.read_table(pa.BufferReader(record.read_bytes("predictions.parquet")))
    said = table["zero_shot"].to_pylist()
    said[::3] = [NAMES[(NAMES.index(name) + 1) % 3] for name in said[::3]]
    at = table.column_names.index("zero_shot")
    record.write_table("predictions.parquet", table.set_column(at, "zero_shot", pa.array(said)))
