"""A finished run whose paths are relative, used from another folder than the one it was started in."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.run.prediction import evaluate_on, predict
from tests.stages.images import write_images

pytestmark = pytest.mark.slow
SETTINGS = ["method=zero_shot", "model.clip=mini", "data.source=photos", "runs=out/runs", "store=store",
            "data.class_names=[cat,dog]", "ray.address=auto"]  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    write_images(Path("photos/a.parquet"), 5)
    folder = tmp_path / pipeline.run(load_config(None, SETTINGS)).path
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_its_own_images_are_found_from_another_folder(run_folder: Path, tmp_path: Path) -> None:
    write_images(_made(tmp_path / "elsewhere" / "photos") / "b.parquet", 3)  # of the same name, and not the run's
    assert pq.read_table(predict(str(run_folder), [])).num_rows == 5
    assert not Path("store").exists()  # nor is anything encoded again
    assert pq.read_table(predict(f"../out/runs/{run_folder.name}", ["data.source=photos"])).num_rows == 3


def test_a_run_that_was_moved_says_what_its_source_was_relative_to(run_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "my run"
    shutil.move(run_folder, moved)
    for verb in (predict, evaluate_on):
        with pytest.raises(
            UserError, match=r"data.source='photos' of the run my run is relative to the folder that the"
        ):
            verb(str(moved), [])
    assert pq.read_table(predict(str(moved), [f"data.source={tmp_path}/photos"])).num_rows == 5


def test_a_source_that_is_gone_is_told_with_the_folder(run_folder: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "photos", tmp_path / "elsewhere" / "pictures")
    with pytest.raises(UserError, match=f"was started in, which was {tmp_path}, and there is no such path"):
        predict(str(run_folder), [])
    assert pq.read_table(predict(str(run_folder), ["data.source=pictures"])).num_rows == 5  # the source is not needed


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
