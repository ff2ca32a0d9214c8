"""Writes ``golden.json`` anew: ``python -m tests.golden.make_golden [--plans]``.

Only where a change is meant: every fingerprint that moves makes users compute their artefacts again, and every key that
goes breaks who reads it. Say why in the changelog. ``--plans`` leaves what was recorded of runs (those take minutes).
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.golden.golden import GOLDEN, PLANS, RUNS, facts_of, fingerprints_of, read_golden


def main(plans_only: bool) -> None:
    """Records all entries."""
    plans = {name: fingerprints_of(name) for name in PLANS}
    runs = read_golden()["runs"] if plans_only else _runs()
    GOLDEN.write_text(json.dumps({"plans": plans, "runs": runs}, indent=1) + "\n")


def _runs() -> dict[str, object]:
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        return {method: facts_of(method, Path(folder)) for method in RUNS}


if __name__ == "__main__":
    os.environ["RAY_ADDRESS"] = "local"
    main("--plans" in sys.argv[1:])
