"""``python -m pretraining pretraining/jobs/clip.yaml [key=value …]``: trains a miniature model of the package again.

The name of the job file says which: clip, diffusion or captioner. The same command again resumes.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

MODELS = ("clip", "diffusion", "captioner")


def main(arguments: Sequence[str]) -> int:
    """Runs the job; returns the exit code, 2 for a user's mistake."""
    model = Path(arguments[0]).stem if arguments else ""
    if model not in MODELS:
        names = ", ".join(f"{name}.yaml" for name in MODELS)
        sys.stderr.write(f"Job file {'' if not arguments else arguments[0]!r} is not known here: give {names}.\n")
        return 2
    return int(import_module(f"pretraining.{model}_pretraining").main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
