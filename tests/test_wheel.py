"""What a person gets who installs the wheel, outside the checkout; and what the source distribution holds."""

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.images import write_png

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def call(*command: str | Path, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a program in a folder, without what leads Python to the checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def tracked() -> list[str]:
    """The files of the checkout that git does not ignore."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and source distribution, the wheel built from the latter."""
    copy, target = tmp_path_factory.mktemp("copy") / "raydapt", tmp_path_factory.mktemp("dist")
    # A copy without what git ignores, so that no leftover of an earlier build gets in and none stays behind.
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    call(_uv(), "build", "--no-build-isolation", "--python", sys.executable, "--out-dir", target, folder=copy)
    (target / ".gitignore").unlink(missing_ok=True)
    return target


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel; it borrows the heavy packages of this one."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    wheel = next(built.glob("*.whl"))
    call(_uv(), "pip", "install", "--no-deps", "--python", folder / "bin" / "python", wheel, folder=folder)
    # A path that is added to sys.path, and not a directory of packages: no editable checkout comes with it.
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


def _uv() -> str:
    found = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "uv is needed"
    return found


def test_the_metadata_are_those_that_an_index_takes(built: Path) -> None:
    pytest.importorskip("twine")
    call(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), folder=built)


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"raydapt"}
    assert {name for name in tracked() if name.startswith("raydapt/")} <= names
    wanted = ("py.typed", "methods/cpl/job.yaml", "tune/job.yaml", "verbs/demo.yaml", "models/mini/clip/README.md")
    assert {f"raydapt/{name}" for name in wanted} <= names
    assert "torchmetrics" not in metadata
    assert "extra == 'wandb'" in metadata.replace('"', "'")


def test_the_source_distribution_holds_all_that_its_tests_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {name for name in tracked() if not name.startswith((".git", ".ci/"))} - names == set()
    assert {"tests/conftest.py", "jobs/cpl.yaml", "constraints.txt", "pretraining/__main__.py", "Makefile"} <= names


def test_a_run_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    where = call(installed / "python", "-c", "import raydapt; print(raydapt.__file__)", folder=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parent)
    for i in range(6):
        write_png(tmp_path / "photos" / f"{i}.png", seed=i)
    names = "data.class_names=[oak, birch]"
    done = call(installed / "raydapt", "run", "zero_shot", "data.source=photos", names, "ray.cpus=2", folder=tmp_path)
    assert "Report: " in done.stdout
    assert list((tmp_path / "runs").glob("*/report.html"))
    dry = call(installed / "raydapt", "run", "cpl", "data.source=photos", names, "--dry-run", folder=tmp_path)
    assert "cpl" in dry.stdout


def test_a_mistake_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    said = call(installed / "raydapt", "run", "cpl", "no.such.key=1", folder=tmp_path, code=2).stderr
    assert said.count("\n") == 1
    assert "Unknown setting 'no'" in said
