"""Options that write a labelled set, for ``run``, ``predict`` and ``threshold``, and ``threshold`` as a command."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Verb = TypeVar("Verb", bound=Callable[..., Any])
_PRECISION = click.FloatRange(0, 1, min_open=True)
_RIGHT = "Share of right ones that is wanted among the answers taken"
precision_option = click.option("--precision", type=_PRECISION, help=f"{_RIGHT}; the default takes every answer.")
"""For verbs that write a labelled set only where it is asked for."""


def labelled_set_options(verb: Verb) -> Verb:
    """Where the labelled set is written; the verb gets what `raydapt.verbs.labelled_files.Places` takes."""
    for option in (
        click.option("--fiftyone", metavar="FOLDER", help="Write data.json and labels.json for FiftyOne there."),
        click.option("--label-studio", metavar="FOLDER", help="Write tasks.json of the rest, with predictions, there."),
        click.option("--csv", metavar="FOLDER", help="Write labels.csv, and rest.csv for people, there."),
        click.option("--copy", is_flag=True, help="With --folder: copies in place of links."),
        click.option("--folder", help="Write the taken images there, a folder for each class, as links."),
    ):
        verb = option(verb)
    return verb


@click.command()
@click.argument("run_folder")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--precision", type=_PRECISION, default=0.95, show_default=True, help=f"{_RIGHT}.")
@labelled_set_options
def threshold(run_folder: str, overrides: tuple[str, ...], precision: float, **places: Any) -> None:
    """Chooses which answers of a run are sure enough, going by its review, and writes the labelled set.

    Nothing is learned anew: the threshold can be moved as often as one likes. Other images with data.source=….
    """
    from raydapt.verbs.labelled_files import Places, after_prediction

    wanted = Places(**places)
    wanted.check()
    for line in after_prediction(run_folder, overrides, wanted, precision=precision):
        click.echo(line)
