"""Features: rows/s through the stage against a plain loop, and how time and memory grow with the number of images.

``python -m tests.bench.bench_features`` prints a Markdown table of each. ``--growth 2000 8000`` takes other sizes, and
``--rows 0`` the growth alone.
Every figure is taken in a process of its own.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raydapt.settings.groups import DataSettings, RaySettings, StageSettings

SPEED_ROWS = 16_384
SPEED_SIDE_PX = 256
GROWTH_ROWS = (50_000, 200_000)
GROWTH_SIDE_PX = 32
_ROWS_PER_GROUP = 1024


def write_images(path: Path, rows: int, side: int) -> None:
    """A Parquet file of photo-like JPEG images (smooth noise), written group by group."""
    generator = np.random.default_rng(0)
    pool = []
    for _ in range(256):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        pool.append(buffer.getvalue())
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())])) as writer:
        for start in range(0, rows, _ROWS_PER_GROUP):
            images = [pool[row % len(pool)] for row in range(start, min(start + _ROWS_PER_GROUP, rows))]
            writer.write_table(pa.table({"image": pa.array(images, pa.binary())}))


class MemoryWatch(threading.Thread):
    """Samples the private memory (resident, not shared) of this process and of its largest worker, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver_mib = self.worker_mib = self.shared_mib = 0.0
        self.worker = ""
        self._stop_it = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self._stop_it.wait(0.1):
            self.driver_mib = max(self.driver_mib, _private_mib(me))
            for child in me.children(recursive=True):
                try:
                    name = (child.cmdline() or [""])[0]
                    if name.startswith("ray::"):
                        if (own_mib := _private_mib(child)) > self.worker_mib:
                            self.worker_mib, self.worker = own_mib, name.removeprefix("ray::")
                        self.shared_mib = max(self.shared_mib, child.memory_info().shared / 2**20)
                except psutil.Error:  # it ended in between
                    continue

    def stop(self) -> dict[str, int]:
        self._stop_it.set()
        self.join()
        return {
            "driver MiB": round(self.driver_mib),
            "largest worker MiB": round(self.worker_mib),
            "largest worker's shared MiB": round(self.shared_mib),
        }


def _private_mib(process: psutil.Process) -> float:
    memory = process.memory_info()
    return float(memory.rss - memory.shared) / 2**20


def plain_loop(images: Path, clip_name: str, batch_size: int) -> dict[str, Any]:
    """The naive way: one process, decode and encode, one batch after the other."""
    import torch

    from raydapt.data.decode import decode_image
    from raydapt.models.clip import load_clip

    clip = load_clip(clip_name)
    start, rows = time.perf_counter(), 0
    for batch in pq.ParquetFile(images).iter_batches(batch_size=batch_size, columns=["image"]):
        pixels = [
            decode_image(image, clip.image_spec, max_pixels=10**8, max_bytes=10**8)
            for image in batch["image"].to_pylist()
        ]
        with torch.inference_mode():
            clip.encode_image(torch.from_numpy(np.stack(pixels)))
        rows += len(pixels)
    seconds = time.perf_counter() - start
    return {"rows": rows, "seconds": seconds, "rows_per_s": rows / seconds}


def through_the_stage(images: Path, clip_name: str, batch_size: int) -> dict[str, Any]:
    """The stage, once on a few images to start its processes, then measured on all of them."""
    from raydapt.cluster.joining import ensure_ray
    from raydapt.data.sources import resolve_source
    from raydapt.models.clip import clip_identity, load_clip
    from raydapt.stages.context import StageContext
    from raydapt.stages.features import features_stage
    from raydapt.store.artefact import Store

    ray_settings = RaySettings(address="local", progress=False)
    spec = load_clip(clip_name).image_spec
    ensure_ray(ray_settings)
    watch = MemoryWatch()
    watch.start()
    settings = StageSettings(batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        result = features_stage(
            resolve_source(str(images), rows_per_part=settings.rows_per_part),
            StageContext(store=Store(folder), ray=ray_settings, settings=settings, data=DataSettings()),
            clip_name=clip_name,
            clip_identity=clip_identity(clip_name),
            image_spec=spec,
        )
        stats = result.artefact.manifest.stats
    return {**stats, **watch.stop()}


def through_this_process(images: Path, clip_name: str, batch_size: int) -> dict[str, Any]:
    """The stage as small sets go: without Ray."""
    from raydapt.data.sources import resolve_source
    from raydapt.models.clip import clip_identity
    from raydapt.models.frozen import shared_clip
    from raydapt.stages.context import StageContext
    from raydapt.stages.features import features_stage
    from raydapt.store.artefact import Store

    settings = StageSettings(batch_size=batch_size)
    spec = shared_clip(clip_name).image_spec
    with tempfile.TemporaryDirectory() as folder:
        result = features_stage(
            resolve_source(str(images), rows_per_part=settings.rows_per_part),
            StageContext(store=Store(folder), ray=RaySettings(progress=False), settings=settings, data=DataSettings()),
            clip_name=clip_name,
            clip_identity=clip_identity(clip_name),
            image_spec=spec,
        )
        return dict(result.artefact.manifest.stats)


def ratios(rows: int = 4 * StageSettings().rows_per_part) -> dict[str, float]:
    """How the stage within its process compares with a plain loop of the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.parquet"
        write_images(images, rows, SPEED_SIDE_PX)
        plain, here = (in_a_process(way, images, "mini", 256) for way in ("plain", "here"))
    return {"features of 256 px, mini, without Ray": here["rows_per_s"] / plain["rows_per_s"]}


def in_a_process(way: str, images: Path, clip_name: str, batch_size: int) -> dict[str, Any]:
    """Runs one measurement in a fresh interpreter and returns what it printed last."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_features",
        "--one",
        way,
        str(images),
        clip_name,
        str(batch_size),
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def speed(rows: int = SPEED_ROWS, clip_name: str = "mini", side: int = SPEED_SIDE_PX) -> list[dict[str, Any]]:
    """Rows/s of the plain loop (an image at a time, in batches) and of the stage, with and without its start-up."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.parquet"
        write_images(images, rows, side)
        ways = [("plain loop, batch 1", "plain", 1), ("plain loop, batch 256", "plain", 256), ("stage", "stage", 256)]
        table = []
        for name, way, batch_size in ways:
            found = in_a_process(way, images, clip_name, batch_size)
            row = {"way": name, "model": clip_name, "image px": side, "images": rows}
            row["images/s"] = round(found["rows_per_s"], 1)
            row["images/s once started"] = round(_steady_rate(found), 1)
            row["share of time in the model"] = found.get("model_share", "")
            table.append(row)
    return table


def _steady_rate(found: dict[str, Any]) -> float:
    """Rows/s without the start of the actors and the part that ended it."""
    rest = found["rows"] - StageSettings().rows_per_part
    startup = found.get("startup_seconds", 0.0)
    return float(rest / (found["seconds"] - startup)) if startup and rest > 0 else float(found["rows_per_s"])


def growth(sizes: Sequence[int] = GROWTH_ROWS, side: int = GROWTH_SIDE_PX) -> list[dict[str, Any]]:
    """Seconds and peak memory of the stage over small images, for each number of them."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            images = Path(folder) / f"{rows}.parquet"
            write_images(images, rows, side)
            found = in_a_process("stage", images, "mini", 256)
            memory = {key: value for key, value in found.items() if key.endswith("MiB")}
            times = found["seconds"] / table[0]["seconds"] if table else 1.0
            row = {"images": rows, "seconds": round(found["seconds"], 1), "times the first": round(times, 2)}
            table.append({**row, "images/s": round(found["rows_per_s"]), **memory})
    return table


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = list(table[0])
    lines = [head, ["---"] * len(head), *([str(row[key]) for key in head] for row in table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, or with ``--one`` a single measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4, metavar=("WAY", "IMAGES", "CLIP", "BATCH"))
    parser.add_argument("--rows", type=int, default=SPEED_ROWS)
    parser.add_argument("--clip", default="mini")
    parser.add_argument("--growth", type=int, nargs="*", default=list(GROWTH_ROWS))
    given = parser.parse_args(arguments)
    if given.one:
        way, images, clip_name, batch_size = given.one
        ways = {"plain": plain_loop, "stage": through_the_stage, "here": through_this_process}
        print(json.dumps(ways[way](Path(images), clip_name, int(batch_size))))
        return
    if given.rows:
        print("## Features, images per second\n\n" + markdown(speed(given.rows, given.clip)))
    if given.growth:
        print("\n## Features, growth\n\n" + markdown(growth(given.growth)))


if __name__ == "__main__":
    main()
