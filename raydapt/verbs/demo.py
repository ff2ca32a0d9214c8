"""The demonstration: the built-in handwritten digits through every method there is, offline."""

from pathlib import Path
from typing import Any

import click

from raydapt.errors import UserError
from raydapt.report import compare
from raydapt.run import pipeline
from raydapt.settings.config import METHODS, config_from_tree
from raydapt.settings.tree import merge_trees, read_yaml
from raydapt.store.folder import Folder

# Networks from scratch need more steps than a prompt, and a mirrored digit is another digit. The whole of a small
# model learns at a higher rate than the published one of a large model.
_OWN: dict[str, dict[str, Any]] = {
    "coreg": {"train": {"max_steps_per_round": None}, "coreg": {"mirror": False}},
    "latteclip": {"train": {"batch_size": 64, "learning_rate": 1e-4}},
}
JOBS = Path(__file__).parents[2] / "jobs"


def demo(overrides: list[str]) -> list[Folder]:
    """Runs ``jobs/demo.yaml`` with every method's own job file, prints the comparison, returns the run folders.

    Args:
        overrides: ``key=value`` settings on top.

    Raises:
        UserError: When raydapt is installed without its job files.
    """
    if not (JOBS / "demo.yaml").exists():
        raise UserError(
            f"The demo needs the job files of a checkout, and there are none in {str(JOBS)!r}: clone raydapt."
        )
    folders: list[Folder] = []
    for method in METHODS:
        click.echo(f"[{len(folders) + 1}/{len(METHODS)}] {method}")
        common = read_yaml(JOBS / "demo.yaml") | {"method": method}
        own = _OWN.get(method, {})
        tree = merge_trees(read_yaml(JOBS / f"{method}.yaml"), common, own, overrides=overrides)
        folders.append(pipeline.run(config_from_tree(tree)).folder)
    rows = compare.compare(folders)
    click.echo()
    click.echo(compare.format_table(rows))
    click.echo(f"Report of the last run: {folders[-1].file('report.html')}")
    return folders
