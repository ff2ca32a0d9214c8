"""The command line: verbs, arguments, options. ``python -m tests.cli_verbs`` writes ``cli_verbs.txt`` anew."""

from pathlib import Path

import click

from raydapt.cli import cli

FILE = Path(__file__).with_suffix(".txt")


def command_line() -> str:
    """One line a verb."""
    lines = []
    for name, command in sorted(cli.commands.items()):
        words = [
            "/".join(one.opts) + ("" if one.is_flag else "=") if isinstance(one, click.Option) else f"<{one.name}>"
            for one in command.params
        ]
        lines.append(" ".join([name, *words]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(command_line())
