"""Fills the generated parts of the pages: settings, command line, Python functions, messages. They come from the code.

    python docs/generate_reference.py            writes
    python docs/generate_reference.py --check    names the pages that are stale and exits 1

A page asks for a part with a pair of comments, ``<!-- generated: settings cpl -->`` and ``<!-- /generated -->``.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import click
import yaml

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "raydapt"

GROUPS = (
    ("", "raydapt.settings.config", "Config"),
    ("data", "raydapt.settings.groups", "DataSettings"),
    ("model", "raydapt.settings.groups", "ModelSettings"),
    ("second", "raydapt.settings.groups", "SecondSettings"),
    ("features", "raydapt.settings.groups", "StageSettings"),
    ("train", "raydapt.settings.groups", "TrainSettings"),
    ("predict", "raydapt.settings.groups", "PredictSettings"),
    ("fpl", "raydapt.methods.fpl.settings", "FplSettings"),
    ("grip", "raydapt.methods.grip.settings", "GripSettings"),
    ("cpl", "raydapt.methods.cpl.settings", "CplSettings"),
    ("air", "raydapt.methods.air.settings", "AirSettings"),
    ("synthesis", "raydapt.settings.groups", "SynthesisSettings"),
    ("lora", "raydapt.settings.groups", "LoraSettings"),
    ("fair", "raydapt.methods.fair.settings", "FairSettings"),
    ("wca", "raydapt.methods.wca.settings", "WcaSettings"),
    ("coreg", "raydapt.methods.coreg.settings", "CoregSettings"),
    ("latteclip", "raydapt.methods.latteclip.settings", "LatteclipSettings"),
    ("transduct", "raydapt.methods.transduct.settings", "TransductSettings"),
    ("fusion", "raydapt.methods.fusion.settings", "FusionSettings"),
    ("caption", "raydapt.settings.language", "CaptionSettings"),
    ("describe", "raydapt.settings.language", "DescribeSettings"),
    ("ray", "raydapt.settings.groups", "RaySettings"),
    ("tune", "raydapt.settings.tune", "TuneSettings"),
)
"""Every group of settings, its module and its dataclass; the empty name is the top of a job file."""

_MADE = "Stages: features, captions, descriptions, synthetic images"
AREAS = (
    ("Command line and job files", ("cli", "settings", "verbs/demo")),
    ("Images, labels and class names", ("data",)),
    ("Models", ("models",)),
    ("Methods and their settings", ("methods", "run/plan", "run/resolve", "verbs/sample_curve")),
    (
        _MADE,
        ("stages", "artefacts", "run/captioning", "run/synthesis", "verbs/caption", "verbs/describe", "train/lora"),
    ),
    ("Sweeps", ("tune",)),
    ("Clusters and training", ("cluster", "train", "verbs/submit", "verbs/doctor")),
    ("Storage, runs and what is done with them", ("",)),
)
"""Where a message belongs, by the beginning of its module's path; the first that fits."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting as the pages show it."""

    name: str
    kind: str
    default: str
    meaning: str
    """Empty where the code says nothing."""


def settings_of(group: str) -> list[Setting]:
    """The settings of a group in their order, those of base classes first."""
    module, name = next((module, name) for key, module, name in GROUPS if key == group)
    owner = getattr(importlib.import_module(module), name)
    hints = get_type_hints(owner, include_extras=True)
    meanings: dict[str, str] = {}
    for base in reversed(owner.__mro__[:-1]):
        meanings |= _meanings(base)
    return [
        Setting(item.name, _kind(hints[item.name]), _default(item), meanings.get(item.name, ""))
        for item in dataclasses.fields(owner)
        if not dataclasses.is_dataclass(_plain(hints[item.name])) and not item.metadata.get("hidden")
    ]


def _meanings(owner: type) -> dict[str, str]:
    """The string below each field, as one line of Markdown."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _text(below):
            found[field.target.id] = " ".join(_text(below).split()).replace("``", "`")
    return found


def _text(node: ast.stmt) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return node.value.value if is_text else ""  # type: ignore[attr-defined]


def _plain(hint: Any) -> Any:
    return _plain(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _kind(hint: Any) -> str:
    """A type in words: ``whole number from 1, or `auto` ``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_kind(inner[0])}{_bounds(inner[1:])}"
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(_kind(one) for one in sorted(inner, key=lambda one: one is type(None))))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin is list:
        return "list"
    if origin is dict:
        return "mapping"
    words = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", type(None): "`null`"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _bounds(limits: tuple[Any, ...]) -> str:
    words = []
    for limit in limits:
        if isinstance(limit, annotated_types.Ge):
            words.append(f"from {limit.ge:g}")  # type: ignore[str-format]
        elif isinstance(limit, annotated_types.Gt):
            words.append(f"above {limit.gt:g}")  # type: ignore[str-format]
        elif isinstance(limit, annotated_types.Le):
            words.append(f"to {limit.le:g}")  # type: ignore[str-format]
    return f" {' '.join(words)}" if words else ""


def _default(item: Any) -> str:
    value = item.default_factory() if item.default is dataclasses.MISSING else item.default
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def settings_part(group: str | None = None) -> str:
    """The table of one group, or all groups under headings."""
    if group is not None:
        return _settings_table(group)
    parts = []
    for name, module, owner in GROUPS:
        about = inspect.getdoc(getattr(importlib.import_module(module), owner)) or ""
        title = f"## `{name}`" if name else "## At the top of a job file"
        parts.append(f"{title}\n\n{_markdown(about.splitlines()[0])}\n\n{_settings_table(name)}")
    return "\n\n".join(parts)


def _settings_table(group: str) -> str:
    prefix = f"{group}." if group else ""
    lines = ["| setting | default | value | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{prefix}{one.name}` | {_cell(one.default)} | {_cell(one.kind)} | {_cell(one.meaning) or '–'} |"
        for one in settings_of(group)
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _markdown(text: str) -> str:
    return text.replace("``", "`").replace("<", "&lt;")


def cli_part() -> str:
    """Every verb with its arguments and options; hidden ones are left out."""
    group: click.Group = importlib.import_module("raydapt.cli").cli
    parts = []
    for name, command in group.commands.items():
        if command.hidden:
            continue
        context = click.Context(command, info_name=name, parent=click.Context(group, info_name="raydapt"))
        pieces = [piece for piece in command.collect_usage_pieces(context) if piece != command.options_metavar]
        usage = " ".join([context.command_path, *pieces])
        about = "\n\n".join(" ".join(one.split()) for one in inspect.cleandoc(command.help or "").split("\n\n"))
        parts.append(f"## `{name}`\n\n```\n{usage}\n```\n\n{_markdown(about)}{_options(command, context)}")
    return "\n\n".join(parts)


def _options(command: click.Command, context: click.Context) -> str:
    rows = []
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            shown = isinstance(option.default, str | int | float) and not option.is_flag
            default = f" (default: `{option.default}`)" if shown else ""
            value = "" if option.is_flag else f" {option.make_metavar(context)}"
            rows.append(f"| `{', '.join(option.opts)}{_cell(value)}` | {_cell(option.help or '')}{default} |")
    return "\n\n| option | meaning |\n|---|---|\n" + "\n".join(rows) if rows else ""


def python_part() -> str:
    """The public functions and classes of the package, with their docstrings."""
    package = importlib.import_module("raydapt")
    names = [name for name in getattr(package, "__all__", ()) if not name.startswith("__")]
    return "\n\n".join(_described(f"raydapt.{name}", getattr(package, name)) for name in names)


def _described(path: str, thing: Any, level: int = 2) -> str:
    head = f"{'#' * level} `{path.removeprefix('raydapt.') if level > 2 else path}`"
    if isinstance(thing, types.ModuleType):
        return f"{head}\n\n{_docstring(thing)}"
    is_error = inspect.isclass(thing) and issubclass(thing, BaseException)
    if isinstance(thing, property | cached_property) or is_error:
        return f"{head}\n\n{_docstring(thing)}"
    parts = [f"{head}\n\n```python\n{_signature(path, thing)}\n```\n\n{_docstring(thing)}"]
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            if not name.startswith("_") and (
                inspect.isfunction(member) or isinstance(member, property | cached_property)
            ):
                parts.append(_described(f"{thing.__name__}.{name}", member, level + 1))
    return "\n\n".join(parts)


def _signature(path: str, thing: Any) -> str:
    text = str(inspect.signature(thing)).replace("'", "")
    if len(path) + len(text) <= 100:
        return path + text
    arguments = [str(one).replace("'", "") for one in inspect.signature(thing).parameters.values()]
    if any(one.kind is inspect.Parameter.KEYWORD_ONLY for one in inspect.signature(thing).parameters.values()):
        first = [one.kind is inspect.Parameter.KEYWORD_ONLY for one in inspect.signature(thing).parameters.values()]
        arguments.insert(first.index(True), "*")
    returned = text.rpartition(" -> ")[2] if " -> " in text else "None"
    return f"{path}(\n    " + ",\n    ".join(arguments) + f",\n) -> {returned}"


def _docstring(thing: Any) -> str:
    """A docstring in Google's style as Markdown: its sections become lists."""
    lines, section, shown = (inspect.getdoc(thing) or "").splitlines(), False, []
    for line in lines:
        if re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields|Example|Examples):", line):
            shown += ["", f"**{line}**", ""]
            section = True
        elif section and re.match(r"    \S", line):
            name, colon, rest = line.strip().partition(":")
            shown.append(f"- `{name}`: {rest.strip()}" if colon and " " not in name else f"- {line.strip()}")
        else:
            shown.append(f"  {line.strip()}" if section and line.strip() else line)
    return _markdown("\n".join(shown)).strip()


def messages_part() -> str:
    """Every sentence that a user's mistake may be answered with, by area."""
    areas: dict[str, set[str]] = {title: set() for title, _ in AREAS}
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).as_posix()
        title = next(title for title, starts in AREAS if relative.startswith(starts))
        areas[title].update(_messages(ast.parse(path.read_text(encoding="utf-8"))))
    return "\n\n".join(
        f"### {title}\n\n" + "\n".join(f"- {one}" for one in sorted(found, key=str.lower))
        for title, found in areas.items()
        if found
    )


def _messages(tree: ast.Module) -> Iterator[str]:
    constants = {
        target.id: item.value.value
        for item in tree.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
        for target in item.targets
        if isinstance(target, ast.Name)
    }
    makers = {one.name: one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError" and node.args:
            given = node.args[0]
            if isinstance(given, ast.Call):  # made by a function of the same file
                maker = makers.get(getattr(given.func, "id", getattr(given.func, "attr", "")))
                returned = (
                    [] if maker is None else [one.value for one in ast.walk(maker) if isinstance(one, ast.Return)]
                )
            else:
                returned = [given]
            yield from (text for one in returned if one is not None and len(text := _sentence(one, constants)) > 12)


def _sentence(node: ast.expr, constants: dict[str, str]) -> str:
    """The text of a literal with … for what is filled in, as code; empty for anything else."""
    if isinstance(node, ast.Constant):
        parts = [str(node.value)]
    elif isinstance(node, ast.JoinedStr):
        parts = [_piece(piece, constants) for piece in node.values]
    else:
        return ""
    text = re.sub(r"…(\s*…)+", "…", " ".join("".join(parts).split()))
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _piece(piece: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(piece, ast.Constant):
        return str(piece.value)
    name = piece.value.id if isinstance(piece, ast.FormattedValue) and isinstance(piece.value, ast.Name) else ""
    return constants.get(name, "…")


PARTS = {"settings": settings_part, "cli": cli_part, "python": python_part, "messages": messages_part}
_PART = re.compile(r"(<!-- generated: (\w+) ?(\w*) -->\n)(.*?)(<!-- /generated -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with its generated parts made anew."""

    def part(match: re.Match[str]) -> str:
        arguments = [match[3]] if match[3] else []
        return f"{match[1]}\n{PARTS[match[2]](*arguments)}\n\n{match[5]}"

    return _PART.sub(part, text)


def main(arguments: list[str]) -> int:
    """Writes the pages, or with ``--check`` compares them."""
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(page.relative_to(DOCS.parent).as_posix())
            if "--check" not in arguments:
                page.write_text(new, encoding="utf-8")
    if stale and "--check" in arguments:
        sys.stderr.write(f"Stale: {', '.join(stale)}. Run: python docs/generate_reference.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
