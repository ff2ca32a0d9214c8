"""Time and memory of ``jobs/large-images.yaml`` on images of 1,000 classes made by seed, by their number.

``python -m tests.bench.bench_large_images --images 20000`` prints the table; each step is a process of its own, and
what its largest worker of Ray has for itself is looked up ten times a second. ``--write FOLDER --images N`` leaves
the images there for ``raydapt run jobs/large-images.yaml``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.bench_commit import peak_mb
from tests.bench.bench_features import MemoryWatch, markdown
from tests.bench.shapes import write_shapes

_JOB = Path(__file__).parents[2] / "jobs" / "large-images.yaml"
STEPS = {"features": [], "transduct": [], "cpl": ["train.epochs=1", "cpl.rounds=2"]}


def measured(step: str, folder: Path, n_images: int) -> dict[str, Any]:
    """One step in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.bench_large_images", "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {"images": f"{n_images:,}", "step": step, **json.loads(done.stdout.strip().splitlines()[-1])}


def run_step(step: str, folder: Path) -> dict[str, Any]:
    """What the process of a step does."""
    from raydapt.methods.configuration import load_config
    from raydapt.run import pipeline

    given = [f"data.source={folder}/images.parquet", f"data.class_names={folder}/classes.txt"]
    places = [f"store={folder}/store", f"runs={folder}/runs", "ray.progress=false"]
    method = "zero_shot" if step == "features" else step
    config = load_config(_JOB, [f"method={method}", *given, *places, *STEPS[step]])
    started, words = time.monotonic(), "-"
    watch = MemoryWatch()
    watch.start()
    if step == "features":
        pipeline.features(config)
    else:
        metrics = pipeline.run(config).read_json("metrics.json")
        words = f"{metrics['zero_shot']['top1']:.1f} → {metrics['adapted']['top1']:.1f}"
    watch.stop()
    return {
        "seconds": round(time.monotonic() - started),
        "driver MB": round(peak_mb()),
        "largest worker MB": round(watch.worker_mib * 2**20 / 1e6),
        "which": watch.worker,
        "top-1": words,
    }


def main() -> None:
    """Prints the table, or writes a set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--px", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.step:
        sys.stdout.write(json.dumps(run_step(given.step, given.folder)) + "\n")
        return
    drawn: dict[str, Any] = {"n_classes": given.classes, "size_px": given.px, "seed": given.seed}
    if given.write:
        write_shapes(given.write, given.images[-1], **drawn)
        return
    rows = []
    for n_images in given.images:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            write_shapes(Path(folder), n_images, **drawn)
            sys.stderr.write(f"{n_images:,} images in {time.monotonic() - started:.0f} s, {peak_mb():.0f} MB\n")
            for step in given.steps:
                rows.append(measured(step, Path(folder), n_images))
                sys.stderr.write(f"{rows[-1]}\n")
    sys.stdout.write(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
