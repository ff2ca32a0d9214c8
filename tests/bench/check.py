"""Whether raydapt is still as much faster than the naive way as it was: ``make bench-check``.

    python -m tests.bench.check           measures what ratios.json keeps, and fails where a ratio fell
    python -m tests.bench.check --keep    measures three times and keeps the medians in ratios.json
    python -m tests.bench.check crops     some of them alone

A ratio holds both ways measured one after the other on the same machine, so it says more than a rate. What is measured
is noisy all the same: a ratio has fallen when the best of three measurements is too low. Each is in a process of its
own, with one thread: threads that spin for each other on a busy machine measure that machine.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

RATIOS = Path(__file__).with_name("ratios.json")
BENCHES = ("prompts", "features", "crops", "coreg", "synthesis")
"""Modules ``bench_NAME`` with a function ``ratios``; the others of ``make bench`` are bound by starts of processes."""
TIMES = 3
TOLERANCE = 0.2
Measure = Callable[[], Mapping[str, float]]


def measured(bench: str) -> dict[str, float]:
    """The ratios of one bench, from a process of its own."""
    command = [sys.executable, "-m", "tests.bench.check", "--one", bench]
    root = Path(__file__).parents[2]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=one_thread, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def fallen(kept: Mapping[str, Mapping[str, float]], measure: Measure) -> dict[str, tuple[float, float]]:
    """The ratios that stay below what is kept, with their best of three measurements and the least that would do.

    Args:
        kept: Ratio and tolerance by name.
        measure: Measures ratios, of which those kept are looked at; called again only while one is too low.
    """
    best: dict[str, float] = {}
    low: dict[str, tuple[float, float]] = {}
    for _ in range(TIMES):
        for name, ratio in measure().items():
            best[name] = max(ratio, best.get(name, 0.0))
        least = {name: entry["ratio"] * (1 - entry["tolerance"]) for name, entry in kept.items()}
        low = {name: (best.get(name, 0.0), bound) for name, bound in least.items() if best.get(name, 0.0) < bound}
        if not low:
            break
    return low


def keep(benches: Sequence[str]) -> None:
    """Writes the medians of three measurements beside those of other benches."""
    entries = json.loads(RATIOS.read_text()) if RATIOS.exists() else {}
    for bench in benches:
        rounds = [measured(bench) for _ in range(TIMES)]
        medians = {name: round(statistics.median(found[name] for found in rounds), 3) for name in rounds[0]}
        told = {name: {"ratio": ratio, "tolerance": TOLERANCE} for name, ratio in medians.items()}
        entries[bench] = {"date": datetime.now(UTC).date().isoformat(), "ratios": told}
        RATIOS.write_text(json.dumps(entries, indent=2) + "\n")
        print(bench, json.dumps(medians), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and tells; 1 where a ratio has fallen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benches", nargs="*")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--one", choices=BENCHES)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(importlib.import_module(f"tests.bench.bench_{given.one}").ratios()))
        return 0
    if given.keep:
        keep(given.benches or BENCHES)
        return 0
    entries, failed = json.loads(RATIOS.read_text()), False
    for bench in given.benches or entries:
        low = fallen(entries[bench]["ratios"], lambda bench=bench: measured(bench))  # type: ignore[misc]
        failed |= bool(low)
        for name, (best, bound) in low.items():
            print(f"{bench}: {name}: {best:.2f} times the naive way, at least {bound:.2f} is wanted", flush=True)
        print(f"{bench}: {'fallen' if low else 'as fast as it was'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
