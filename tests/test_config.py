import dataclasses
from pathlib import Path

import pytest

from raydapt.errors import UserError
from raydapt.methods.configuration import config_from_tree, load_config
from raydapt.methods.table import METHODS
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree, merge_trees, setting_names

JOBS = Path(__file__).parents[1] / "jobs"


def test_defaults_need_no_file() -> None:
    assert load_config() == Config()


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
    assert load_config(tmp_path / "job.yaml") == Config()


def test_merging_keeps_what_the_upper_tree_does_not_name() -> None:
    lower, upper = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}}
    assert merge_trees(lower, upper, overrides=["a.z=5"]) == {"a": {"x": 1, "y": 4, "z": 5}, "b": 3}
    assert lower == {"a": {"x": 1, "y": 2}, "b": 3}


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_file_is_valid(path: Path) -> None:
    load_config(path)


def test_every_method_has_a_job_file() -> None:
    assert {load_config(JOBS / f"{method}.yaml").method for method in METHODS} == set(METHODS)


def test_the_settings_are_these() -> None:
    """A new setting has to earn its place: add it here; the pages of the reference are made from the code."""
    groups = sorted({name.split(".")[0] for name in setting_names(Config) if "." in name})
    expected = (
        "air caption coreg cpl data describe fair features fpl grip latteclip lora model ray synthesis train tune"
    )
    assert " ".join(groups) == expected
    assert len(list(setting_names(Config))) == 205
