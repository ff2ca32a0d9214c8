"""Among many images some that are none: they are counted, named, and cost nothing else."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from tests.data.images import png_header

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def write_folder(folder: Path, n_images: int) -> list[Path]:
    """Class folders of small JPEG images."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(n_images):
        path = folder / ("oak", "birch", "pine")[i % 3] / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def config_of(tmp_path: Path, folder: Path, *overrides: str):
    places = [f"runs={tmp_path}/runs", f"store={tmp_path}/store", f"data.source={folder}"]
    return load_config(None, [*places, "method=zero_shot", *overrides])


@pytest.mark.slow
def test_four_bad_images_among_a_thousand(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paths = write_folder(folder, 1000)
    paths[10].write_bytes(paths[10].read_bytes()[:300])
    paths[20].write_bytes(b"")
    paths[30].write_text("this is no image")
    paths[40].write_bytes(png_header(30_000, 30_000))
    Image.new("CMYK", (16, 16), (10, 20, 30, 40)).save(paths[50])
    Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16)).save(paths[60], format="PNG")
    run = pipeline.run(config_of(tmp_path, folder))
    metrics = json.loads(run.read_bytes("metrics.json"))
    assert sum(metrics["errors"].values()) == 4
    assert metrics["errors"] == {"corrupt": 1, "empty": 1, "not_an_image": 1, "too_many_pixels": 1}
    predicted = set(pq.read_table(Path(run.path) / "predictions.parquet")["path"].to_pylist())
    assert len(predicted) == 996
    assert {f"{p.parent.name}/{p.name}" for p in (paths[50], paths[60])} <= {
        "/".join(p.split("/")[-2:]) for p in predicted
    }
    assert "too_many_pixels" in (Path(run.path) / "report.html").read_text()


def test_two_percent_bad_images_stop_the_stage_with_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for path in write_folder(folder, 100)[::50]:
        path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        pipeline.run(config_of(tmp_path, folder))
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in ("2 of 100", "'empty'", "data.max_error_share"):
        assert word in sentence
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("part-*.parquet")}
    assert kept
    pipeline.run(config_of(tmp_path, folder, "data.max_error_share=0.02"))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
