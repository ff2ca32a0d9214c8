"""Verbs and options are a promise: whoever changes one writes the list anew and says so in the changelog."""

import click

from raydapt.cli import _ALIASES, cli
from tests.cli_verbs import FILE, command_line


def test_verbs_and_options_are_those_of_the_list() -> None:
    assert command_line() == FILE.read_text(), "meant? then python -m tests.cli_verbs, and a line in CHANGELOG.md"


def test_old_names_still_answer() -> None:
    for old, new in _ALIASES.items():
        assert cli.get_command(click.Context(cli), old) is cli.commands[new]
