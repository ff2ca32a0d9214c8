"""The package as a Python program or a notebook meets it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import raydapt
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.verbs.call import config_of, overrides_of
from raydapt.verbs.images import write_images

HEAVY = ("torch", "ray", "pandas", "numpy", "pydantic", "yaml", "click")
QUICK = {"data.limit": 200, "train.max_steps_per_round": 3, "train.warmup_epochs": 0, "cpl.rounds": 1}


def program(text: str) -> str:
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_is_light() -> None:
    assert program(f"import raydapt, sys; print([one for one in {HEAVY} if one in sys.modules])") == "[]\n"


@pytest.mark.slow
def test_a_mistake_is_told_before_torch_and_ray_are_imported(tmp_path: Path) -> None:
    text = f"""
import raydapt, sys
try:
    raydapt.run("{tmp_path}", settings={{"data.sorce": 1}})
except raydapt.UserError as error:
    print(error, "torch" in sys.modules, "ray" in sys.modules)
"""
    said = program(text)
    assert "data.sorce" in said
    assert said.endswith("False False\n")


def test_every_public_name_is_there_and_the_rooms_do_not_take_the_places_of_functions() -> None:
    import raydapt.run.pipeline
    import raydapt.tune.sweep

    assert set(raydapt.__all__) <= set(dir(raydapt))
    functions = [name for name in raydapt.__all__ if name[0].islower()]
    assert {"run", "load", "predict", "tune"} <= set(functions)
    for name in functions:
        function = getattr(raydapt, name)
        assert callable(function), name
        assert "Raises:" in function.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'no_such_verb'"):
        raydapt.no_such_verb  # noqa: B018


def test_values_of_every_kind_become_the_same_settings() -> None:
    values = {
        "train.learning_rate": 1e-7,
        "data.class_names": ["a: b", "1", "null", "über, ☕"],
        "data.limit": None,
        "cpl.rounds": 3,
        "space": {"train.learning_rate": {"loguniform": [1e-5, 0.1]}},
        "runs": Path("some where"),
    }
    config = load_config(None, overrides_of(values))
    assert config.train.learning_rate == 1e-7
    assert config.data.class_names == values["data.class_names"]
    assert config.data.limit is None
    assert config.space == values["space"]
    assert config.runs == "some where"
    with pytest.raises(UserError, match=r"Setting seed=.* is a object"):
        overrides_of({"seed": object()})


def test_settings_go_over_arguments_and_what_is_not_given_is_left_to_the_recipe() -> None:
    names = pd.Series(["a", "b"])
    given = {"seed": 1, "method": "fpl", "data.class_names": names, "data.templates": None}
    config = config_of({"seed": 4}, "digits", given)
    assert (config.seed, config.method, config.data.class_names) == (4, "fpl", ["a", "b"])
    assert config.data.templates == "auto"
    assert config.train.epochs == 150  # of FPL's recipe


def test_images_of_every_kind_are_written(tmp_path: Path) -> None:
    file = tmp_path / "photo.JPEG"
    Image.new("RGB", (5, 4), (200, 0, 0)).save(file, format="JPEG")
    array_HW3 = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    target = tmp_path / "written"
    target.mkdir()
    images = [file, array_HW3, array_HW3[:, :, 0], Image.new("CMYK", (2, 2))]
    assert write_images(images, target) == [str(file), None, None, None]
    written = [Image.open(path) for path in sorted(target.iterdir())]
    assert [image.size for image in written] == [(5, 4), (5, 4), (5, 4), (2, 2)]
    assert np.array_equal(np.asarray(written[1]), array_HW3)
    assert np.array_equal(np.asarray(written[2]), array_HW3[:, :, 0])
    for image in written:
        image.close()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "holds no image"),
        (["no/such.png"], "'no/such.png' cannot be read"),
        ([np.zeros((4, 5, 3))], r"images\[0\] is float64 \[4, 5, 3\]"),
        ([np.zeros((3, 4, 5), np.uint8)], r"uint8 \[3, 4, 5\]"),
        ([3], r"images\[0\] is int"),
    ],
)
def test_what_is_no_image_is_refused(images: list[object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        write_images(images, tmp_path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished run"):
        raydapt.load(tmp_path)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_from_images_to_predictions(tmp_path: Path) -> None:
    places = {"runs": tmp_path / "runs", "store": tmp_path / "store"}
    run = raydapt.run("digits", settings=QUICK, **places)
    assert Path(run.report).is_file()
    assert raydapt.run("digits", settings=QUICK, **places).folder == run.folder
    assert len(run.predictions) == run.metrics["evaluation"]["images"]
    assert f"{run.metrics['adapted']['top1']:.2f} %" in repr(run)
    assert run.metrics["name"] in run._repr_html_()

    again = raydapt.load(run.folder)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (9 + i, 8, 3), dtype=np.uint8) for i in range(3)]
    file = tmp_path / "one.png"
    Image.fromarray(arrays[1]).save(file)
    mixed = again.predict([arrays[0], str(file), Image.fromarray(arrays[2])])
    assert mixed.index.tolist() == [0, 1, 2]
    assert mixed["path"].tolist() == [None, str(file), None]
    (tmp_path / "folder").mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / "folder" / f"{i}.png")
    of_folder = raydapt.predict(run.folder, tmp_path / "folder")
    assert mixed["predicted"].tolist() == of_folder["predicted"].tolist()
    assert np.allclose(mixed["confidence"], of_folder["confidence"])

    measured = raydapt.evaluate(run.folder)
    assert measured["adapted"].keys() == run.metrics["adapted"].keys()
    assert len(raydapt.compare([run, run.folder])) == 1
    assert Path(raydapt.features("digits", store=tmp_path / "store", settings={"data.limit": 200})).is_dir()


@pytest.mark.slow
@pytest.mark.ray
def test_a_script_without_a_main_guard_runs_in_a_thread_and_in_an_event_loop(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"""
import asyncio, threading, raydapt
made = []
def go(seed, **more):
    made.append(raydapt.run("digits", seed=seed, settings={QUICK!r} | more, runs="runs", store="store"))
def apart():
    go(1, **{{"train.workers": 2}})
async def within():
    go(2)
thread = threading.Thread(target=apart)
thread.start()
thread.join()
asyncio.run(within())
print("made", *(run.metrics["seed"] for run in made))
""")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "made 1 2" in done.stdout, done.stderr
