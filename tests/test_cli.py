"""The command line as a user meets it: exit codes and sentences."""

import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from raydapt import cli as cli_module
from raydapt.errors import UserError
from tests.images import write_png

JOBS = Path(__file__).parents[1] / "jobs"


def call(*arguments: str) -> Result:
    """Runs a verb in this process; a `UserError` is what `main` turns into exit code 2."""
    return CliRunner().invoke(cli_module.cli, list(arguments))


def sentence(*arguments: str) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    return [f"runs={tmp_path}/runs", f"store={tmp_path}/store"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("oak", "birch"):
        for i in range(3):
            write_png(tmp_path / "photos" / name / f"{i}.png", seed=i)
    return tmp_path / "photos"


def test_help_names_every_verb() -> None:
    text = call("--help").output
    for verb in ("run", "features", "predict", "evaluate", "compare", "report", "demo", "estimate", "tune-report"):
        assert verb in text


@pytest.mark.parametrize(("old", "new"), [("plan", "estimate"), ("study", "tune-report"), ("samples", "sample-curve")])
def test_old_names_of_verbs_still_answer_but_are_not_shown(old: str, new: str) -> None:
    assert call(old, "--help").output.split("\n", 1)[1] == call(new, "--help").output.split("\n", 1)[1]
    assert f"  {old} " not in call("--help").output


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.source=eurosatt"], ["eurosatt", "eurosat"]),
        (["data.source=no/such/folder"], ["no/such/folder", "does not exist"]),
        (["data.sorce=x"], ["data.sorce", "data.source"]),
        (["model.clip=no-such-model"], ["model.clip='no-such-model'"]),
        (["data.class_names=[one]"], ["class"]),
        (["data.class_names=[one, two, One]"], ["more than once"]),
        (["data.templates=['a photo']"], ["data.templates", "{}"]),
    ],
)
def test_a_mistake_is_one_sentence(places: list[str], overrides: list[str], words: list[str]) -> None:
    said = sentence("run", *places, *overrides, "--dry-run")
    for word in words:
        assert word in said


DESCRIBED = {"birch": ["white bark"], "oak": ["lobed leaves"]}


@pytest.mark.parametrize(
    ("described", "overrides", "words"),
    [
        ({"birch": ["white bark"]}, [], ["no description of 'oak'", "add some, or set fair.anchor_text=names"]),
        (DESCRIBED | {"elm": ["x"]}, [], ["describes 'elm', which is no class", "'birch', 'oak'", "take it out"]),
        (DESCRIBED | {"oaks": ["x"]}, [], ["describes 'oaks', which is no class", "did you mean 'oak'?"]),
        (DESCRIBED | {"oak": ["fine", " "]}, [], ["gives 'oak' the description ' '", "a text of 1 to 1000 characters"]),
        (DESCRIBED | {"oak": []}, [], ["gives 'oak' no list of descriptions", "write at least one"]),
        (None, [], ["holds no mapping", "write 'class: [description, …]'"]),
        (DESCRIBED, ["fair.top_k=9"], ["fair.top_k=9 is more than fair.crops=8", "lower it, or take more crops"]),
        (DESCRIBED, ["fair.top_k=0"], ["fair.top_k", "0", "1"]),
        (
            DESCRIBED,
            ["fair.descriptions=auto"],
            ["fair.descriptions=auto", "none come with raydapt for", "give a file"],
        ),
        (DESCRIBED, ["fair.descriptions=no.yaml"], ["fair.descriptions='no.yaml'", "no readable YAML", "give a file"]),
    ],
)
@pytest.mark.parametrize("job", ["fair", "wca"])
def test_wrong_descriptions_are_one_sentence_and_exit_code_2(
    places: list[str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job: str,
    described: dict[str, list[str]] | None,
    overrides: list[str],
    words: list[str],
) -> None:
    file = tmp_path / "trees.yaml"
    file.write_text("" if described is None else yaml.safe_dump(described))
    given = [*places, f"data.source={photos}", f"fair.descriptions={file}", "fair.crops=8", *overrides]
    monkeypatch.setattr(sys, "argv", ["raydapt", "run", str(JOBS / f"{job}.yaml"), *given])
    with pytest.raises(SystemExit) as caught:
        cli_module.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]  # before it a slow machine may tell that it loads a model
    assert said.startswith("raydapt: Setting fair.")
    for word in words:
        assert word in said
    if overrides == []:
        assert str(file) in said
    assert not (tmp_path / "runs").exists()


def test_an_empty_folder_is_one_sentence(places: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images" in sentence("run", *places, f"data.source={tmp_path}/empty")


@pytest.mark.parametrize("name", ["a/b", "<b>bold</b>", "{}", "{0}", "café ☕", "100%"])
def test_hostile_class_names_are_only_names(places: list[str], photos: Path, name: str) -> None:
    result = call("run", *places, f"data.source={photos}", f'data.class_names=["{name}", "other"]', "--dry-run")
    assert result.exit_code == 0, result.exception
    assert name in result.output


def test_an_unwritable_run_folder_is_one_sentence(places: list[str], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "runs=" in sentence("run", f"runs={tmp_path}/file/runs", places[1], f"data.source={photos}")


def test_the_plan_computes_nothing(places: list[str], photos: Path, tmp_path: Path) -> None:
    result = call("run", *places, f"data.source={photos}", "--dry-run")
    assert result.exit_code == 0, result.exception
    assert "2: birch, oak" in result.output
    assert "to be made" in result.output
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("verb", ["predict", "evaluate", "compare", "report"])
def test_what_is_no_run_is_one_sentence(tmp_path: Path, verb: str) -> None:
    assert "run" in sentence(verb, str(tmp_path))


def test_the_demo_chooses_without_labels_and_says_what_features_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from raydapt.verbs.demo import best_without_labels, features_settings

    runs = [{"scores": None}, {"scores": {"mean": 0.4}}, {"scores": {"mean": 0.6}}, {"scores": {"mean": 0.6}}, {}]
    assert best_without_labels(runs) == 2
    assert best_without_labels([{"scores": {"mean": None}}, {}]) is None
    monkeypatch.setenv("RAYDAPT_DATA", "/nowhere")
    with pytest.raises(UserError, match=r"--features needs .*RAYDAPT_DATA"):
        features_settings()


def test_the_demo_lays_its_settings_over_the_recipe_of_every_method() -> None:
    from raydapt.methods.configuration import load_config
    from raydapt.methods.table import METHODS
    from raydapt.verbs.demo import demo_config

    assert [demo_config(method).method for method in METHODS] == list(METHODS)
    assert all(demo_config(method).data.source == "digits" for method in METHODS)
    assert demo_config("grip").train.epochs == load_config(None, ["method=grip"]).train.epochs == 150
    assert demo_config("fair").train.optimizer == "adamw"
    assert demo_config("cpl").train.max_steps_per_round == 150
    assert demo_config("cpl", ["train.max_steps_per_round=2"]).train.max_steps_per_round == 2
    assert load_config(JOBS / "demo.yaml") == demo_config("cpl")
    assert len(demo_config("ensemble").data.templates) == 2
    assert demo_config("ensemble", ["data.source=photos/"]).data.templates == "auto"  # what is said of digits
    assert demo_config("ensemble", ['data.templates=["a {}"]']).data.templates == ["a {}"]


def test_the_demo_of_features_can_plan_every_method(data_folder: Path) -> None:
    from raydapt.methods.table import METHODS
    from raydapt.run.plan import make_plan
    from raydapt.verbs.demo import demo_config, features_settings, takes_features

    configs = [demo_config(method, features_settings()) for method in METHODS]
    planned = [make_plan(config).config.method for config in configs if takes_features(config)]
    assert {"zero_shot", "ensemble", "cpl", "fpl", "transduct"} <= set(planned)


@pytest.mark.slow
def test_the_demo_of_features_makes_every_run_once(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raydapt.verbs.demo import demo

    places = [f"runs={tmp_path}/runs", f"store={tmp_path}/store"]
    folders = demo([*places, "train.max_steps_per_round=2"], features=True)
    methods = [folder.read_json("metrics.json")["method"] for folder in folders]
    assert {"zero_shot", "ensemble", "cpl", "fpl", "fusion"} <= set(methods)
    said = capsys.readouterr().out
    assert all(said.count(f"] {method}: ") == 1 for method in methods)
    assert said.index("] cpl: ") < said.index("] fusion: ")  # which reads that run


def test_the_demo_says_what_it_is_at_when_nothing_ends_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    from raydapt.store.folder import Folder
    from raydapt.verbs import demo

    folder, runs = Folder("runs", setting="runs"), [Future[Folder]() for _ in range(4)]
    begun = dict(zip(runs[:3], map(demo.demo_config, ("zero_shot", "cpl", "air")), strict=True))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        {1: runs[2], 2: runs[1], 3: runs[3]}[len(said)].set_result(folder)

    monkeypatch.setattr(demo, "_EVERY_S", 0.0)
    monkeypatch.setattr("raydapt.verbs.demo.click.echo", say)
    runs[0].set_result(folder)
    ended = []
    for run in demo._as_they_end(begun, 2):
        ended.append(begun[run].method)
        begun[runs[3]] = demo.demo_config("fusion")  # begins when the first one has ended
    assert ended == ["zero_shot", "air", "cpl", "fusion"]
    assert said == ["  at cpl and air …", "  at cpl and fusion …", "  at fusion …"]


@pytest.mark.slow
def test_the_program_says_what_it_imports_before_it_plans(tmp_path: Path) -> None:
    code = (
        "import sys, raydapt.progress as p; p._SILENCE_S = 0.0\n"
        "from raydapt.cli import main; sys.argv = ['raydapt', *sys.argv[1:]]; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, "run", "cpl", "data.source=digits", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == "importing torch and open_clip …"
    assert "stage     features" in done.stdout


@pytest.mark.slow
def test_exit_codes_of_the_program() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raydapt.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert program("--version").returncode == 0
    wrong = program("run", "data.source=no/such/folder")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("raydapt: ")
    assert program("no-such-verb").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "cpl", "no.such.key=1"], "Unknown setting 'no'"),
        (["run", "cpl", "data.source=missing/"], "'missing/' does not exist"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["run", "cp"], "did you mean 'cpl'"),
        (["tune", "fair", "cpl.alpha=0.5"], "fair does not use cpl"),
        (["features", "data.source=nowhere"], "neither a path nor a named set: check the path"),
        (["caption", "euroset"], "did you mean 'eurosat'"),
    ],
)
def test_a_mistake_is_answered_before_anything_heavy_is_imported(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    code = (
        "import sys; from raydapt.cli import main; sys.argv = ['raydapt', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    status = stop.code\n"
        "heavy = [name for name in ('torch', 'ray', 'transformers', 'diffusers', 'open_clip') if name in sys.modules]\n"
        "print(status, heavy)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2 []"
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
