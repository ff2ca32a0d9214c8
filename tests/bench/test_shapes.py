"""Generated images: every class can be told from its pixels, and a file is the same for the same seed."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydapt.data.sources import read_part, resolve_source
from raydapt.settings.groups import DataSettings
from tests.bench.shapes import CLASS_NAMES, draw, write_shapes


@pytest.mark.slow
def test_a_thousand_classes_are_told_apart_by_their_mean_images() -> None:
    random = np.random.default_rng(0)
    pixel_KCD = np.stack([[draw(c, 32, random).reshape(-1) for c in range(1000)] for _ in range(8)]).astype(np.float32)
    mean_CD, test_CD = pixel_KCD[:-1].mean(0), pixel_KCD[-1]
    nearest_C = (2 * test_CD @ mean_CD.T - (mean_CD**2).sum(1)).argmax(1)
    assert len(set(CLASS_NAMES)) == 1000
    assert (nearest_C == np.arange(1000)).mean() > 0.95


@pytest.mark.slow
def test_a_file_depends_on_its_seed_and_the_first_of_many_are_those_of_few(tmp_path: Path) -> None:
    for name, rows, seed in (("few", 1000, 0), ("many", 2030, 0), ("other", 1000, 1)):
        write_shapes(tmp_path / name, rows, 12, size_px=8, seed=seed)
    few, many, other = (pq.read_table(tmp_path / name / "images.parquet") for name in ("few", "many", "other"))
    assert few.equals(many.slice(0, 1000))
    assert not few["image"].equals(other["image"])
    assert many.num_rows == 2030
    assert pq.ParquetFile(tmp_path / "many/images.parquet").num_row_groups == 3
    assert (tmp_path / "many/classes.txt").read_text().splitlines() == list(CLASS_NAMES[:12])
    by_label = few.group_by(["label", "split"]).aggregate([("image", "count")]).to_pylist()
    assert {row["image_count"] for row in by_label if row["split"] == "test"} <= {8, 9}
    assert len(by_label) == 24
    source = resolve_source(str(tmp_path / "few/images.parquet"), rows_per_part=2000)
    (part,) = source.parts
    assert read_part(part, DataSettings())["error"].null_count == 1000
    with pytest.raises(IndexError):
        draw(1000, 8, np.random.default_rng(0))
