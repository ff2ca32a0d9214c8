"""A sweep of 24 trials against 24 separate runs of the same settings, on cached features.

Separate runs each start a process that imports torch, open_clip and Ray; trials share a few. The naive side is measured
on a few runs and multiplied, and the table says so. ``python -m tests.bench.bench_tune`` prints a Markdown table;
``--address`` takes a cluster that runs, else the sweep starts one, and its start counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from raydapt.methods.configuration import config_from_tree
from raydapt.settings.tree import as_tree
from raydapt.tune.search_space import draw_trials, parse_space, trial_config
from raydapt.tune.selection import UNADAPTED
from tests.bench.bench_features import markdown
from tests.tune.cases import job

SPACE = {
    "train.learning_rate": {"loguniform": [0.005, 0.5]},
    "cpl.alpha": {"uniform": [0.5, 0.99]},
    "cpl.beta": {"uniform": [0.5, 0.99]},
}


def raydapt(*arguments: str) -> float:
    """Seconds that a command takes."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "raydapt.cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--separate", type=int, default=3, help="Separate runs that are measured.")
    parser.add_argument("--steps", type=int, default=10, help="Steps of each of the two rounds.")
    parser.add_argument("--address", default="local")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            "space": SPACE,
            "train": {"max_steps_per_round": arguments.steps, "batch_size": 64},
            "tune": {"trials": arguments.trials},
            "ray": {"address": arguments.address},
            "name": "sweep",
        }
        config = job(folder, "digits", **settings)
        tree = as_tree(config)
        (folder / "sweep.yaml").write_text(yaml.safe_dump(tree))
        separate = []
        for number, trial in enumerate(draw_trials(config, parse_space(config))[1 : 1 + arguments.separate]):
            chosen = as_tree(trial_config(config_from_tree({**tree, "name": f"separate-{number}"}), trial))
            (folder / "run.yaml").write_text(yaml.safe_dump(chosen))
            separate.append(raydapt("run", str(folder / "run.yaml")))
        sweep = raydapt("tune", str(folder / "sweep.yaml"))
        result = json.loads((folder / "runs" / "sweep" / "tune.json").read_text())
        finished = sum(t["state"] == "finished" and t["number"] != UNADAPTED for t in result["trials"])
    naive = arguments.trials * sum(separate) / len(separate)
    measured = f"{arguments.trials} separate runs ({arguments.separate} measured, multiplied)"
    rows = [
        {"cpl on digits, cached features": measured, "seconds": f"{naive:.0f}", "times faster": "1"},
        {
            "cpl on digits, cached features": f"one sweep, {finished} trials finished",
            "seconds": f"{sweep:.0f}",
            "times faster": f"{naive / sweep:.1f}",
        },
    ]
    print(markdown(rows))


if __name__ == "__main__":
    main()
