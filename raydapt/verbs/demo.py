"""The demonstration: the built-in handwritten digits through every method there is, offline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from raydapt.methods.configuration import config_from_tree
from raydapt.methods.table import METHODS
from raydapt.report.compare import format_table
from raydapt.run import pipeline
from raydapt.run.reporting import compare_runs
from raydapt.settings.config import Config
from raydapt.settings.tree import merge_trees, read_yaml
from raydapt.store.folder import Folder

# Networks from scratch need more steps than a prompt, and a mirrored digit is another digit. The whole of a small
# model learns at a higher rate than the published one of a large model.
_OWN: dict[str, dict[str, Any]] = {
    "coreg": {"train": {"max_steps_per_round": None, "precision": "bf16"}, "coreg": {"mirror": False}},
    "latteclip": {"train": {"batch_size": 64, "learning_rate": 1e-4}},
}
SETTINGS = Path(__file__).with_name("demo.yaml")


def demo(overrides: list[str]) -> list[Folder]:
    """Runs ``demo.yaml`` over every method's own recipe, prints the comparison, returns the run folders.

    Args:
        overrides: ``key=value`` settings on top.

    Raises:
        UserError: For a setting that is not valid.
    """
    folders: list[Folder] = []
    for method in METHODS:
        click.echo(f"[{len(folders) + 1}/{len(METHODS)}] {method}")
        folders.append(pipeline.run(demo_config(method, overrides)).folder)
    click.echo()
    click.echo(format_table(compare_runs(folders)))
    click.echo(f"Report of the last run: {folders[-1].file('report.html')}")
    return folders


def demo_config(method: str, overrides: Sequence[str] = ()) -> Config:
    """The demonstration's settings of one method: its recipe lies beneath them."""
    own = _OWN.get(method, {})
    return config_from_tree(merge_trees(read_yaml(SETTINGS), {"method": method}, own, overrides=overrides))
