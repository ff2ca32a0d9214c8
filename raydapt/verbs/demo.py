"""The demonstration: the built-in handwritten digits through every method there is, offline."""

from collections.abc import Sequence
from pathlib import Path

import click

from raydapt.methods.configuration import EverySetting, config_from_tree
from raydapt.methods.table import METHODS, recipe_file
from raydapt.report.compare import format_table
from raydapt.run import pipeline
from raydapt.run.reporting import compare_runs
from raydapt.settings.config import Config
from raydapt.settings.tree import merge_trees, read_yaml
from raydapt.store.folder import Folder

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
    """The demonstration's settings of one method: over its recipe, under its own ``demo.yaml`` where it has one."""
    own = recipe_file(method).with_name("demo.yaml")
    trees = [read_yaml(SETTINGS), {"method": method}, read_yaml(own) if own.exists() else {}]
    return config_from_tree(merge_trees(*trees, overrides=overrides, kind=EverySetting))
