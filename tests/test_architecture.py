"""Which rooms know Ray, the size of files, and what must never be committed."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raydapt"
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


@pytest.mark.parametrize("pure", ["methods", "models", "data", "artefacts", "report", "review", "settings", "store"])
def test_pure_rooms_do_not_know_ray(pure: str) -> None:
    for path in (PACKAGE / pure).rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "ray"], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 70, node.name


def committed() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]


def test_nothing_large_secret_or_local_is_committed() -> None:
    # Put together here, so that this file does not hold what it looks for.
    registry = "|".join(name + r"\.org" for name in ("pypi", "pythonhosted", r"download\.pytorch"))
    secret = "-----BEGIN [A-Z ]*PRIVATE" + " KEY|AKIA[0-9A-Z]{16}"
    for path in committed():
        assert path.stat().st_size < 16e6, path
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".json", ""}:
            text = path.read_text(errors="ignore")
            assert not re.search(f"{registry}|{secret}", text), path
            assert not re.search(r"(?<![\w.])/(root|home|work|farm|Users)/", text), path


def test_the_package_imports_without_the_caption_engine() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [
            n
            for node in top
            for n in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        ]
        assert not [name for name in names if name.split(".")[0] == "vllm"], path


# Predictions and accuracies of a run, labels of SSL and TRZSL, and the oracle of sweeps. Nothing else sees a label.
READS_LABELS = {"artefacts/features.py", "run/known_labels.py"}


def test_only_these_modules_read_labels() -> None:
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if getattr(node, "name", getattr(node, "id", getattr(node, "attr", None))) == "load_labels"
    }
    assert readers == READS_LABELS
