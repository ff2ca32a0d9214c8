"""Memory and time of ``jobs/large.yaml`` on features made by seed, by their number.

``python -m tests.bench.bench_embeddings --images 10000 100000 1000000`` prints the table; each step is a process of
its own, so that its peak memory and processor time are its own. ``--write FOLDER --images 1280000`` leaves the features
and class embeddings there for ``raydapt run jobs/large.yaml``. The features are those of a mixture, random directions
around class centres, written in float16 piece by piece: memory does not grow with their number.

Legend: N images, C classes, D width.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.bench_features import markdown

_ROWS = 20_000
_JOB = Path(__file__).parents[2] / "jobs" / "large.yaml"
_HEAD = ("images", "step", "seconds", "processor s", "peak GiB", "top-1")
JOBS = {
    "features": [],
    "zero_shot": [],
    "transduct": [],
    "fair": ["train.epochs=1"],
    "cpl": ["train.epochs=1", "cpl.rounds=2"],
}


def write_source(folder: Path, n_images: int, n_classes: int, width: int, seed: int = 0) -> None:
    """Features in pieces of bounded size, a tenth of them for testing, and class embeddings that are a little off.

    Images are drawn around class centres with three times the centres' own deviation, class embeddings with 1.7 times:
    of 1,000 classes at width 512 the embeddings then name two thirds of the images rightly.
    """
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    centre_CD = generator.standard_normal((n_classes, width), dtype=np.float32)
    schema = pa.schema([("feature", pa.list_(pa.float16(), width)), ("label", pa.string()), ("split", pa.string())])
    with pq.ParquetWriter(folder / "x.parquet", schema) as writer:
        for start in range(0, n_images, _ROWS):
            class_N = generator.integers(n_classes, size=min(_ROWS, n_images - start))
            value_ND = centre_CD[class_N] + 3 * generator.standard_normal((len(class_N), width), dtype=np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(value_ND.astype(np.float16).reshape(-1)), width)
            split = ["test" if row % 10 == 0 else "train" for row in range(len(class_N))]
            writer.write_table(pa.table([column, [f"class {c}" for c in class_N], split], schema=schema))
    class_CD = centre_CD + 1.7 * generator.standard_normal(centre_CD.shape, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(class_CD.reshape(-1)), width)
    pq.write_table(
        pa.table({"name": [f"class {c}" for c in range(n_classes)], "feature": column}), folder / "c.parquet"
    )


def measured(step: str, folder: Path) -> list[str]:
    """One step in a process of its own: seconds and peak memory."""
    command = [sys.executable, "-m", "tests.bench.bench_embeddings", "--step", step, "--folder", str(folder)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        return [step, f"{seconds:.0f}", "", "failed", (done.stderr.strip().splitlines() or [""])[-1][:80]]
    return [step, f"{seconds:.0f}", *done.stdout.strip().splitlines()[-1].split()]


def run_step(step: str, folder: Path) -> None:
    """What the process of a step does; prints its processor seconds, its peak memory in GiB and the accuracies."""
    from raydapt.methods.configuration import load_config
    from raydapt.run import pipeline

    places = [f"store={folder}/store", f"runs={folder}/runs", "ray.progress=false"]
    given = [f"data.source={folder}/x.parquet", f"data.class_features={folder}/c.parquet"]
    method = "zero_shot" if step == "features" else step
    config = load_config(_JOB, [f"method={method}", *places, *given, *JOBS[step]])
    words = "-"
    if step == "features":
        pipeline.features(config)
    else:
        metrics = pipeline.run(config).read_json("metrics.json")
        words = f"{metrics['zero_shot']['top1']:.1f}->{metrics['adapted']['top1']:.1f}"
    used = resource.getrusage(resource.RUSAGE_SELF)
    sys.stdout.write(f"{used.ru_utime + used.ru_stime:.0f} {used.ru_maxrss / 2**20:.2f} {words}\n")


def main() -> None:
    """Prints the table, or writes a set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    parser.add_argument("--steps", nargs="+", default=list(JOBS))
    parser.add_argument("--step")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.folder)
        return
    drawn = arguments.classes, arguments.width, arguments.seed
    if arguments.write:
        write_source(arguments.write, arguments.images[-1], *drawn)
        return
    rows = []
    for n_images in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            write_source(Path(folder), n_images, *drawn)
            for step in arguments.steps:
                rows.append(dict(zip(_HEAD, [f"{n_images:,}", *measured(step, Path(folder))], strict=True)))
                sys.stderr.write(f"{rows[-1]}\n")
    sys.stdout.write(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
