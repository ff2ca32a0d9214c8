"""Decoding for encoders: Pillow image by image against torchvision in batches (``features.decode``), on one thread.

python -m tests.bench.bench_decode                        the device is the CPU
python -m tests.bench.bench_decode --device cuda          JPEGs by nvJPEG; Pillow still on one thread of the CPU
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from raydapt.data.decode import ImageSpec
from raydapt.data.decode_on_device import DeviceDecoder
from raydapt.settings.groups import DataSettings
from raydapt.stages.reading import decode_table

ROWS = 512
SIDES_PX = (256, 1024)
SIZE_PX = 224
DATA = DataSettings()


def jpegs(rows: int, side: int) -> pa.Table:
    """A part of photo-like JPEGs, 32 different ones: coarse noise under fine noise, quality 90."""
    generator, images = np.random.default_rng(0), []
    for _ in range(min(rows, 32)):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grain = generator.integers(-12, 13, (side, side, 1), dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    images = [images[row % len(images)] for row in range(rows)]
    return pa.table({"image": pa.array(images, pa.large_binary()), "error": pa.array([None] * rows, pa.string())})


def seconds(work: Callable[[pa.Table], object], table: pa.Table, device: torch.device, times: int) -> float:
    """Of the processor, or by the clock where a GPU works: the median of some times, after a few rows to start up."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken = []
    work(table.slice(0, 8))
    for _ in range(times):
        start = clock()
        work(table)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(clock() - start)
    return statistics.median(taken)


def compare(table: pa.Table, side: int, *, measured: bool, device: torch.device, times: int) -> dict[str, Any]:
    """Milliseconds an image by Pillow, for looking at headers, and in batches on the device."""
    rows, spec = table.num_rows, ImageSpec(size_px=SIZE_PX)
    decoder = DeviceDecoder(spec=spec, data=DATA, measured=measured)
    left = decode_table(table, DATA, spec, measured=measured, for_device=True)
    assert left["image"].null_count == 0, "all of them are to be decoded by the device"
    pillow = partial(decode_table, data=DATA, spec=spec, measured=measured)
    pillow_s = seconds(pillow, table, device, times)
    header_s = seconds(partial(pillow, for_device=True), table, device, times)
    device_s = seconds(lambda part: decoder.decode(part, device).table(), left, device, times)
    return {
        "image px": side,
        "kB": round(table["image"].nbytes / rows / 1000),
        "measured": measured,
        "Pillow, ms": round(pillow_s / rows * 1000, 3),
        "headers, ms": round(header_s / rows * 1000, 3),
        "batches, ms": round(device_s / rows * 1000, 3),
        "ratio": round(pillow_s / (header_s + device_s), 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES_PX))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device = torch.device(given.device)
    for side in given.sides:
        table = jpegs(given.rows, side)
        for measured in (False, True):
            print(compare(table, side, measured=measured, device=device, times=given.times), flush=True)


if __name__ == "__main__":
    main()
