import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from raydapt.errors import UserError
from raydapt.methods.configuration import all_setting_names, changed_settings, config_from_tree, load_config
from raydapt.methods.cpl.settings import CplSettings
from raydapt.methods.table import GROUPS, METHODS
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree, merge_trees

JOBS = Path(__file__).parents[1] / "jobs"


def test_defaults_need_no_file() -> None:
    assert load_config() == replace(Config(), own={"cpl": CplSettings()})


def test_overrides_are_yaml_and_reach_into_groups() -> None:
    config = load_config(None, ["data.source=eurosat", "seed=3", "train.learning_rate=1e-2", "data.class_names=[a, b]"])
    assert config.data.source == "eurosat"
    assert config.seed == 3
    assert config.train.learning_rate == 0.01
    assert config.data.class_names == ["a", "b"]


def test_overrides_beat_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("method: fpl\ntrain: {epochs: 7, batch_size: 8}\n")
    config = load_config(path, ["train.epochs=9"])
    assert (config.method, config.train.epochs, config.train.batch_size) == ("fpl", 9, 8)


def test_settings_are_frozen_and_survive_their_tree() -> None:
    config = load_config(None, ["cpl.alpha=0.6", "train.max_steps_per_round=5"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    assert config_from_tree(as_tree(config)) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.epochs=5", ["'trian'", "did you mean 'train"]),
        ("train.epoch=5", ["'train.epoch'", "did you mean 'train.epochs'"]),
        ("epochs=5", ["'epochs'", "train.epochs"]),
        ("train.epochs=zero", ["train.epochs='zero'", "integer"]),
        ("train.epochs=0", ["train.epochs=0", "greater than or equal to 1"]),
        ("train.learning_rate=-1", ["train.learning_rate=-1", "greater than 0"]),
        ("cpl.alpha=1.5", ["cpl.alpha=1.5"]),
        ("method=clp", ["method='clp'", "'cpl'"]),
        ("data.paradigm=semi", ["data.paradigm='semi'", "'trzsl'"]),
        ("train=5", ["'train'", "group"]),
        ("seed.x=5", ["seed={'x': 5}"]),
        ("epochs", ["no '='"]),
        ("features.actors=many", ["features.actors='many'"]),
        ("data.class_names={a: b}", ["data.class_names="]),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_key_value_and_way_out(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("text", ["[1, 2]", "a: b: c", "\x00", "method: [cpl"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="Job file"):
        load_config(path)


def test_a_missing_file_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "job.yaml") == load_config()


def test_merging_keeps_what_the_upper_tree_does_not_name() -> None:
    lower, upper = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}}
    assert merge_trees(lower, upper, overrides=["a.z=5"]) == {"a": {"x": 1, "y": 4, "z": 5}, "b": 3}
    assert merge_trees(lower, overrides=["a.x=7"])["a"]["x"] == 7
    assert lower["a"]["x"] == 1  # the trees stay as they are
    assert lower == {"a": {"x": 1, "y": 2}, "b": 3}


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_file_is_valid(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["fair.crops=99"], ["fair.crops", "cpl does not use fair.*"]),
        (["method=wca", "cpl.alpha=0.5"], ["cpl.alpha", "wca does not use cpl.*", "fair"]),
        (["method=zero_shot", "coreg.student=mini"], ["coreg.student", "no settings of its own"]),
        (["method=air", "air.base=grip", "cpl.alpha=0.5"], ["cpl.alpha", "air and grip"]),
        (["method=air", "air.base=coreg"], ["air.base='coreg'"]),
        (["own.cpl=1"], ["'own'"]),
        (["cpl=5"], ["'cpl'", "group"]),
    ],
)
def test_a_setting_of_another_method_is_refused(given: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, given)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_without_a_job_file_takes_its_own_recipe(method: str) -> None:
    config = load_config(None, [f"method={method}"])
    assert config == load_config(JOBS / f"{method}.yaml")
    assert config_from_tree(as_tree(config)) == config
    rates = {
        "fair": ("adamw", "auto"),
        "latteclip": ("adamw_clip", "auto"),
        "fpl": ("sgd", "auto"),
        "coreg": ("sgd", 0.05),
    }
    if method in rates:
        assert (config.train.optimizer, config.train.learning_rate) == rates[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_short_job_file_means_the_same(method: str, tmp_path: Path) -> None:
    config = load_config(None, [f"method={method}", "train.learning_rate=0.02", "seed=4"])
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(changed_settings(config)))
    assert load_config(tmp_path / "job.yaml") == config


def test_settings_of_an_earlier_run_hold_every_group() -> None:
    """Run folders of earlier releases name the settings of all methods."""
    tree = as_tree(Config()) | {name: as_tree(kind()) for name, kind in GROUPS.items()} | {"method": "wca"}
    assert set(config_from_tree(tree, of_a_run=True).own) == {"fair", "wca"}
    with pytest.raises(UserError, match="wca does not use"):
        config_from_tree(tree)


def test_every_method_has_a_job_file() -> None:
    assert {load_config(JOBS / f"{method}.yaml").method for method in METHODS} == set(METHODS)


def test_the_settings_are_these() -> None:
    """A new setting has to earn its place: add it here and in the README."""
    names = all_setting_names(Config())
    groups = sorted({name.split(".")[0] for name in names if "." in name})
    methods = "air coreg cpl fair fpl fusion grip latteclip transduct wca"
    shared = "caption data describe features lora model predict ray second synthesis train tune"
    assert groups == sorted([*methods.split(), *shared.split()])
    assert len(names) == len(set(names))
