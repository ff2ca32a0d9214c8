"""Where a local Ray puts its sockets: what the environment says, and what happens where it cannot be done."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raydapt.cluster.temp_folder import LONGEST_BYTES, temp_folder
from raydapt.errors import UserError

_START = """
from raydapt.cluster.joining import ensure_ray
from raydapt.errors import UserError
from raydapt.progress import log_to_console
from raydapt.settings.groups import RaySettings
import ray
log_to_console()
try:
    ensure_ray(RaySettings(address="local", cpus=1))
except UserError as error:
    print(error)
else:
    print("in", ray._private.worker._global_node.get_session_dir_path())
    print("answers", ray.get(ray.remote(lambda: 7).remote()))
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def _of_length(folder: Path, length: int) -> str:
    return f"{folder}/{'x' * (length - len(str(folder)) - 1)}"


@pytest.mark.parametrize("variables", [{}, {"RAY_TMPDIR": ""}, {"RAY_TMPDIR": " ", "TMPDIR": ""}])
def test_empty_variables_are_none(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert temp_folder() == Path("/tmp")
    assert not {"RAY_TMPDIR", "TMPDIR"} & set(os.environ)


def test_the_first_variable_counts_and_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv("TMPDIR", "below")
    assert temp_folder() == Path("/tmp/below")
    monkeypatch.setenv("RAY_TMPDIR", "~/sockets")
    monkeypatch.setenv("HOME", "/tmp/home")
    assert temp_folder() == Path("/tmp/home/sockets")


def test_ray_goes_to_tmp_where_tmpdir_alone_is_too_long(monkeypatch, caplog):
    monkeypatch.setenv("TMPDIR", _of_length(Path("/tmp"), LONGEST_BYTES + 1))
    with caplog.at_level("INFO", logger="raydapt"):
        assert temp_folder() == Path("/tmp")
    assert f"has {LONGEST_BYTES + 1} bytes" in caplog.text
    monkeypatch.setenv("RAY_TMPDIR", _of_length(Path("/tmp"), LONGEST_BYTES))
    assert temp_folder() == Path(os.environ["RAY_TMPDIR"])
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "é" * (LONGEST_BYTES // 2))
    with pytest.raises(UserError, match=rf"Variable RAY_TMPDIR='/tmp/é+' has .*{LONGEST_BYTES}.*RAY_TMPDIR=/tmp"):
        temp_folder()


def test_a_folder_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("raydapt.cluster.temp_folder.LONGEST_BYTES", 1000)  # folders of tests are long
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"Variable TMPDIR='.*/file/below': .*file: Not a directory.*RAY_TMPDIR=/tmp"):
        temp_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/proc/below")
    with pytest.raises(UserError, match="Variable RAY_TMPDIR='/proc/below': Ray cannot"):
        temp_folder()


@pytest.mark.ray
@pytest.mark.parametrize("case", ["empty", "longest", "too long"])
def test_ray_starts_with_what_is_left(case):
    """The longest folder leaves Ray no more than the digits that a process number may lack."""
    folder = Path(f"/tmp/raydapt-{os.getpid()}")
    variables = {
        "empty": {"RAY_TMPDIR": ""},
        "longest": {"RAY_TMPDIR": _of_length(folder, LONGEST_BYTES)},
        "too long": {"TMPDIR": _of_length(folder, LONGEST_BYTES + 1)},
    }[case]
    done = subprocess.run(
        [sys.executable, "-c", _START], env=os.environ | variables, capture_output=True, text=True, cwd="/", check=False
    )
    place = variables.get("RAY_TMPDIR") or "/tmp"
    assert f"in {place}/ray/session_" in done.stdout, done.stdout + done.stderr
    assert "answers 7" in done.stdout
    assert ("Ray keeps its sockets" in done.stderr) == (case == "too long")
    shutil.rmtree(folder, ignore_errors=True)
