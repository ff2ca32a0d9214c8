"""Memory of a training that reads pixels of 224 px on more and more images, ``train.cache_gb=1``.

``python -m tests.bench.bench_pixels --images 1000 10000 100000`` writes so many generated images, makes features and
decoded images in one process, and learns (one epoch of at most 200 steps of 64 images, then the answers for all) in a
second one, whose largest memory (RSS) it prints. ``--method fair`` learns the LayerNorms of ``mini``'s image tower from
images of 224 px, ``--method latteclip`` both towers, without captions, of a ``mini`` whose patches are seven times as
large: as many tokens of an image of 224 px. ``--cache-gb 1000`` keeps the whole set in memory, the naive way;
``--stored-pixels jpeg`` has the pixels encoded in the store.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.run.making import make_artefacts
from raydapt.run.plan import make_plan
from raydapt.settings.config import Config
from raydapt.settings.groups import PixelEncoding
from tests.bench.bench_commit import peak_mb
from tests.bench.bench_features import markdown

IMAGES = (1_000, 10_000)
JOBS = Path(__file__).parents[2] / "jobs"
MINI = Path(str(files("raydapt.models"))) / "mini"
METHODS: dict[str, dict[str, str]] = {
    "fair": {"fair.layer_norms": "true", "fair.anchor_text": "names", "fair.image_px": "224"},
    "latteclip": {
        "model.clip": "{folder}/clip",
        "latteclip.use_image_caption": "false",
        "latteclip.use_batch_caption": "false",
    },
}
"""What makes a method read pixels of 224 px."""
_PX, _CLASSES, _ROWS_PER_GROUP = 224, 10, 1000
_WEIGHTS = "open_clip_model.safetensors"


def write_source(path: Path, n_images: int) -> None:
    """Images of 32 px in ten colours with noise, as PNG."""
    schema = pa.schema({"image": pa.binary(), "label": pa.string(), "split": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n_images, _ROWS_PER_GROUP):
            rows = range(start, min(start + _ROWS_PER_GROUP, n_images))
            writer.write_table(pa.Table.from_pylist(list(_rows(rows)), schema))


def _rows(rows: range) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(rows.start)
    colours = np.random.default_rng(0).integers(0, 256, (_CLASSES, 3))
    for row in rows:
        pixel_SS3 = (colours[row % _CLASSES] + random.integers(-60, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixel_SS3).save(file, "PNG", compress_level=1)
        yield {
            "image": file.getvalue(),
            "label": f"colour {row % _CLASSES}",
            "split": "test" if row % 20 == 0 else "train",
        }


def write_larger_mini(folder: Path) -> None:
    """`mini` for images of 224 px: patches seven times as large, whose weights spread over as many more pixels."""
    shutil.copytree(MINI / "clip", folder)
    settings = json.loads((folder / "open_clip_config.json").read_text())
    vision = settings["model_cfg"]["vision_cfg"]
    vision["patch_size"] *= _PX // vision["image_size"]
    vision["image_size"] = _PX
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    weights = load_file(folder / _WEIGHTS)
    patch = weights["visual.conv1.weight"]
    factor = vision["patch_size"] // patch.shape[-1]
    weights["visual.conv1.weight"] = F.interpolate(patch, scale_factor=factor, mode="nearest") / factor**2
    save_file(weights, folder / _WEIGHTS)


def _config(folder: Path, method: str, cache_gb: float, encoding: str) -> Config:
    overrides = {
        "data.source": folder / "images.parquet",
        "data.class_names": json.dumps([f"colour {i}" for i in range(_CLASSES)]),
        "store": folder / "store",
        "runs": folder / "runs",
        "train.epochs": 1,
        "train.batch_size": 64,
        "train.max_steps_per_round": 200,
        "train.cache_gb": cache_gb,
        "train.predict_batch_size": 256,
        "features.stored_pixels": encoding,
        "ray.progress": "false",
        **{name: value.format(folder=folder) for name, value in METHODS[method].items()},
    }
    return load_config(JOBS / f"{method}.yaml", [f"{name}={value}" for name, value in overrides.items()])


def measure(folder: Path, method: str, step: str, cache_gb: float, encoding: str) -> dict[str, Any]:
    """One process: ``make`` what is read, or ``learn``."""
    config, started = _config(folder, method, cache_gb, encoding), time.monotonic()
    if step == "make":
        make_artefacts(make_plan(config))
        return {}
    before_mb, cpu_s = peak_mb(), time.process_time()
    run = pipeline.run(config)
    lines = [json.loads(line) for line in run.read_bytes("metrics.jsonl").splitlines()]
    return {
        "RSS before, MB": round(before_mb),
        "largest RSS, MB": round(peak_mb()),
        "images/s learned": round(lines[-1]["images_per_s"]),
        "seconds": round(time.monotonic() - started),
        "seconds of CPU": round(time.process_time() - cpu_s),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, each line of which processes of their own measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--method", choices=list(METHODS), default="fair")
    parser.add_argument("--cache-gb", type=float, default=1.0)
    parser.add_argument("--stored-pixels", choices=get_args(PixelEncoding), default="raw")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if not given")
    parser.add_argument("--step", choices=["make", "learn"], help="of the work in --folder, in this process")
    given = parser.parse_args(arguments)
    if given.step:
        print(json.dumps(measure(given.folder, given.method, given.step, given.cache_gb, given.stored_pixels)))
        return
    table = []
    for n_images in given.images:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            write_source(Path(folder) / "images.parquet", n_images)
            write_larger_mini(Path(folder) / "clip")
            line: dict[str, Any] = {"images": n_images, "decoded, GB": round(n_images * 3 * _PX**2 / 1e9, 2)}
            for step in ("make", "learn"):
                command = [sys.executable, "-m", "tests.bench.bench_pixels", "--folder", folder, "--step", step]
                command += ["--method", given.method, "--cache-gb", str(given.cache_gb)]
                command += ["--stored-pixels", given.stored_pixels]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            table.append(line | json.loads(done.stdout.splitlines()[-1]))
            print(table[-1], file=sys.stderr, flush=True)
    print(f"## `{given.method}` from pixels of {_PX} px, train.cache_gb={given.cache_gb:g}\n\n" + markdown(table))


if __name__ == "__main__":
    main()
