"""What the pages say of the program is true: settings, commands, links, files; and it is said plainly."""

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from markdown.extensions.toc import slugify

from raydapt.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").glob("*.md"))
    if path.name != "CHANGELOG.md"
)
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
MOST_README_LINES = 130
IDIOMS = (
    "hoped for",
    "is one sentence",
    "was the aim",
    "were the aim",
    "learns what one would",
    "learn what one would",
)
PLACEHOLDER = re.compile(r"(^|/|\[)[A-Z][A-Z0-9_-]*([\].=/|]|$)|…|\.\.\.|<\w+>")
"""What a reader replaces: SET, runs/NAME, JOB.yaml, [KEY=VALUE]."""
NOT_SETTINGS = ("ray.data", "ray.io", "tune.json", "data.json", "model.onnx", "model.safetensors")

page_of = pytest.mark.parametrize("page", PAGES, ids=IDS)


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


generator = _generator()
SETTINGS = {
    f"{group}.{one.name}".strip("."): one for group, _, _ in generator.GROUPS for one in generator.settings_of(group)
}
GROUPS = [group for group, _, _ in generator.GROUPS if group]


def _written(text: str) -> str:
    """The page without what is made from the code, which speaks of any kind of setting."""
    return re.sub(r"(?s)<!-- generated:.*?<!-- /generated -->", "", text)


def _blocks(text: str) -> list[str]:
    return re.findall(r"(?ms)^```\w*\n(.*?)^```", text)


def _inline(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text))


def _commands(text: str) -> Iterator[str]:
    """Every command line of raydapt, without comments and line ends."""
    for block in _blocks(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if line.strip().startswith("raydapt "):
                yield re.sub(r"\s#.*", "", line.strip())
    yield from (piece for piece in _inline(text) if piece.startswith("raydapt ") and " " in piece.strip())


def _recipes() -> set[str]:
    """What may stand where a job is asked for: the names of methods and of other job files."""
    return {path.stem for path in (ROOT / "jobs").glob("*.yaml")}


def _methods() -> set[str]:
    """The rooms that have a recipe of their name."""
    return {folder.name for folder in (ROOT / "raydapt" / "methods").iterdir() if folder.name in _recipes()}


def test_every_setting_has_a_meaning() -> None:
    assert [name for name, one in SETTINGS.items() if not one.meaning] == []


def test_every_group_of_settings_is_in_the_reference() -> None:
    from raydapt.settings.config import Config
    from raydapt.settings.tree import setting_names

    assert set(setting_names(Config)) <= set(SETTINGS)
    from raydapt.methods.table import GROUPS as OF_METHODS

    assert "cpl" in OF_METHODS
    assert set(OF_METHODS) <= set(GROUPS)


def test_the_generated_parts_are_those_of_the_code() -> None:
    stale = [
        page.name for page in (ROOT / "docs").rglob("*.md") if generator.filled(page.read_text()) != page.read_text()
    ]
    assert stale == [], "run: python docs/generate_reference.py"


def test_a_bound_an_alternative_and_a_default_are_told_in_words() -> None:
    assert generator._kind(int | None) == "whole number, or `null`"
    assert (SETTINGS["train.epochs"].kind, SETTINGS["train.epochs"].default) == ("whole number from 1", "`50`")
    assert SETTINGS["data.train_splits"].default == "`[train]`"


@page_of
def test_commands_parse(page: Path) -> None:
    for line in _commands(page.read_text()):
        verb, *arguments = shlex.split(line.removeprefix("raydapt "))
        if PLACEHOLDER.search(verb):
            continue
        command = cli.commands.get(verb)
        assert command is not None, line
        assert not command.hidden, line
        context = click.Context(command, info_name=verb, parent=click.Context(cli))
        try:
            values, left, _ = command.make_parser(context).parse_args(arguments)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")
        assert left == [], line
        given = {one.name: values.get(one.name) for one in command.params if isinstance(one, click.Argument)}
        for word in _words(given.values()):
            key, equals, _ = word.partition("=")
            is_known = key in SETTINGS or key.startswith("space.") or PLACEHOLDER.search(key)
            assert not equals or is_known, f"{line}: no setting {key}"
        job = given.get("config")
        if verb != "caption" and isinstance(job, str) and "=" not in job and not PLACEHOLDER.search(job):
            is_there = job in _recipes() or job.startswith("runs/") or (ROOT / job).is_file()
            assert is_there, f"{line}: no recipe or job file {job}"


def _words(values: Iterable[object]) -> Iterator[str]:
    """The arguments that were given; the others are marks of click's own."""
    for value in values:
        yield from (word for word in (value if isinstance(value, tuple) else (value,)) if isinstance(word, str))


@page_of
def test_settings_that_are_named_exist(page: Path) -> None:
    text = _written(page.read_text())
    pattern = rf"(?<![\w./-])((?:{'|'.join(GROUPS)})\.[a-z_]\w*)"
    named = set(re.findall(pattern + "=", text))
    named |= {match[1] for piece in _inline(text) if (match := re.fullmatch(pattern, piece))}
    assert sorted(name for name in named if name not in SETTINGS and not name.startswith(NOT_SETTINGS)) == []


@page_of
def test_links_and_anchors_exist(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), f"{target} is no file"
        if anchor:
            assert anchor in _anchors(file), f"{target} is no heading"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))
    return {slugify(re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading), "-") for heading in headings}


@page_of
def test_files_of_the_repository_that_are_named_exist(page: Path) -> None:
    named = {
        piece
        for piece in _inline(page.read_text())
        if re.fullmatch(r"(raydapt|jobs|tests|cluster|docs)/[\w./-]+", piece)
    }
    assert sorted(one for one in named if not (ROOT / one).exists() and not PLACEHOLDER.search(one)) == []


@page_of
def test_no_private_idioms(page: Path) -> None:
    assert [idiom for idiom in IDIOMS if idiom in page.read_text()] == []


def test_every_method_has_its_page() -> None:
    readme, table = ((ROOT / name).read_text() for name in ("README.md", "docs/methods/index.md"))
    assert "cpl" in _methods()
    for method in _methods():
        page = ROOT / "docs" / "methods" / f"{method}.md"
        assert page.is_file(), f"write {page}: rule, what is stated, inferred and ours, settings, figures"
        wanted = ("**Take it when**", "## Rule", "| where from |", "## Settings")
        assert [one for one in wanted if one not in page.read_text()] == [], page
        assert f"](docs/methods/{method}.md)" in readme
        assert f"]({method}.md)" in table


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_README_LINES


def test_every_file_that_a_run_writes_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "run-folder.md").read_text()
    written = set()
    for path in (ROOT / "raydapt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_write = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
                "write_json",
                "write_text",
                "write_bytes",
            )
            first = node.args[0] if is_write and node.args else None
            if isinstance(first, ast.Constant) and re.fullmatch(r"[\w/]+\.\w+", str(first.value)):
                written.add(str(first.value))
    assert "metrics.json" in written
    assert sorted(name for name in written if f"`{name}`" not in page) == []


def test_every_column_of_the_report_is_explained() -> None:
    pages = ("report.md", "sweeps.md", "results/index.md")
    page = "".join((ROOT / "docs" / name).read_text().lower() for name in pages)
    heads = set(_columns_of_sections())
    for template in (ROOT / "raydapt").rglob("*.html.j2"):
        for head in re.findall(r"(?s)<th scope=\"col\"[^>]*>(.*?)</th>", template.read_text()):
            heads.update(one.strip().lower() for one in re.split(r"(?s){[{%].*?[%}]}|<.*?>", head))
    assert "combined" in heads
    assert sorted(head for head in heads - {"0", "100 %"} if head not in page) == []


def _columns_of_sections() -> Iterator[str]:
    """The heads of the tables that sections hold as data."""
    for path in (ROOT / "raydapt").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
        firsts = [call.args[0] for call in calls if getattr(call.func, "id", "") == "Column"]
        yield from (str(first.value).lower() for first in firsts if isinstance(first, ast.Constant))
