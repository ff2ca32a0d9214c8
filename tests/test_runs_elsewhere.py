"""A finished run whose paths are relative, used from another folder than the one it was started in."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.models.clip_names import MINI
from raydapt.run import pipeline
from raydapt.run.finished import open_run
from raydapt.run.prediction import evaluate_on, predict
from raydapt.verbs.labelled_files import Places, write_files
from raydapt.verbs.review import images_of_review, open_first, open_review
from raydapt.verbs.threshold import threshold
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


def test_a_review_shows_the_runs_images_from_another_folder(run_folder: Path, tmp_path: Path) -> None:
    record, config = open_first([str(run_folder)])
    population = open_review([str(run_folder)]).population
    id_ = population.id_N[0]
    assert images_of_review(record, config, population).read(id_)
    everything = threshold(str(run_folder), precision=None)
    told = write_files(str(run_folder), [], everything, Places(folder="sorted"))
    assert told == [f"sorted: {everything.told['taken']} images"]
    assert everything.told["taken"] > 0
    shutil.move(tmp_path / "photos", tmp_path / "pictures")
    with pytest.raises(UserError, match=f"was started in, which was {tmp_path}, and there is no such path"):
        images_of_review(record, open_first([str(run_folder)])[1], population)
    with pytest.raises(UserError, match="relative to the folder that the run was started in"):
        write_files(str(run_folder), [], everything, Places(folder="again"))


def test_a_source_that_is_gone_is_told_with_the_folder(run_folder: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "photos", tmp_path / "elsewhere" / "pictures")
    with pytest.raises(UserError, match=f"was started in, which was {tmp_path}, and there is no such path"):
        predict(str(run_folder), [])
    assert pq.read_table(predict(str(run_folder), ["data.source=pictures"])).num_rows == 5  # the source is not needed


def test_its_own_model_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(_made(Path("photos")) / "a.parquet", 5)
    shutil.copytree(MINI, "weights/clip")
    run = tmp_path / pipeline.run(load_config(None, [*SETTINGS, "model.clip=weights/clip"])).path
    expected = pq.read_table(predict(str(run), []))
    monkeypatch.chdir(_made(tmp_path / "elsewhere"))
    assert pq.read_table(predict(str(run), [])).equals(expected)
    assert not Path("store").exists()
    write_images(_made(Path("pictures")) / "b.parquet", 3)
    assert pq.read_table(predict(str(run), ["data.source=pictures"])).num_rows == 3
    settings = (run / "config.yaml").read_text()
    for name, found in (
        ("local-dir:weights/clip", f"local-dir:{tmp_path}/weights/clip"),
        ("ViT-B-32/weights/clip/open_clip_config.json", f"ViT-B-32/{tmp_path}/weights/clip/open_clip_config.json"),
        *((name, name) for name in ("mini", "ViT-B-32/openai", "hf-hub:weights/clip", "openai/clip-vit-base-patch32")),
    ):
        (run / "config.yaml").write_text(settings.replace("clip: weights/clip", f"clip: {name}"))
        assert open_run(str(run))[1].model.clip == found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
