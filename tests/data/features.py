"""Small sources of features."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq


def vectors(n: int, width: int = 4, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def unit(value: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    wide = value.astype(np.float64)
    return np.stack([row / np.sqrt((row * row).sum()) for row in wide])


def fixed(value: npt.NDArray[np.floating]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), value.shape[1])


def write(path: Path, value: npt.NDArray[np.floating], *, group: int | None = None, **columns: object) -> Path:
    pq.write_table(pa.table({"feature": fixed(value), **columns}), path, row_group_size=group)
    return path
