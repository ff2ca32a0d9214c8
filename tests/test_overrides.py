from pathlib import Path
from typing import Any

import pytest

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.settings.config import Config
from raydapt.settings.tree import apply_override

TEXTS = ["/photos/set #2", "set # 2", "#1", "a: b", "2024", "1e3", "no", "null ", "2024-01-01", "0x10", "yes"]
TEXTS += ["{a,b}.tar", "{0..9}", "x-{00..09}.tar", "[set] 1", "[set]", "*.tar", "&x", "!y", "@z", "- a", "? b", "| c"]
TEXTS += ["%d", "date=2024/", "best run (1)", "a, b", "~/x", "it's", 'a "b"', "'a' b", "'a' #b", "été", ".", "a\\b"]
TEXTS += ["> x", "`x`"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_as_it_stands(text: str) -> None:
    assert load_config(None, [f"data.source={text}"]).data.source == text.strip()
    assert load_config(None, [f"name={text}"]).name == text.strip()


@pytest.mark.parametrize(("text", "value"), [("'set #2'", "set #2"), ('"2024"', "2024"), ("''", ""), ("", "")])
def test_quotes_are_those_of_yaml(text: str, value: str) -> None:
    assert load_config(None, [f"data.source={text}"]).data.source == value


def test_lists_of_texts_are_texts() -> None:
    given = load_config(None, ["data.class_names=[yes, no, 1, 'C #', null]"]).data.class_names
    assert given == ["yes", "no", "1", "C #", "null"]
    assert load_config(None, ["data.class_names=names #1.txt"]).data.class_names == "names #1.txt"


def test_numbers_and_nothing_are_what_they_were() -> None:
    config = load_config(None, ["train.epochs=5", "train.learning_rate=1e-3", "data.limit=null", "ray.progress=false"])
    assert (config.train.epochs, config.train.learning_rate, config.data.limit) == (5, 0.001, None)
    assert config.ray.progress is False
    with pytest.raises(UserError, match=r"train\.epochs"):
        load_config(None, ["train.epochs=five"])


@pytest.mark.parametrize("text", ["/photos/date=2024", "photos/", "."])
def test_a_path_without_its_setting_is_told_from_a_setting(text: str) -> None:
    with pytest.raises(UserError, match=r"is a path and no setting: write data\.source=") as caught:
        apply_override({}, text)
    assert repr(text) in str(caught.value)


def test_a_folder_in_the_place_of_a_job_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder and no job file: write data\.source="):
        load_config(str(tmp_path), [])


def test_a_tree_of_no_known_kind() -> None:
    tree: dict[str, Any] = {}
    for item in ("a.b=[1, x]", "c=x #1", "d=3", "e={f: 1}", "g=true"):
        apply_override(tree, item)
    assert tree == {"a": {"b": [1, "x"]}, "c": "x #1", "d": 3, "e": {"f": 1}, "g": True}
    assert Config().name == "auto"


def test_words_that_old_yaml_takes_for_truth_values_name_classes_in_a_job_file(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("method: cpl\ndata:\n  source: x\n  class_names: [yes, no, on, Off]\nray: {progress: false}\n")
    config = load_config(job)
    assert list(config.data.class_names) == ["yes", "no", "on", "Off"]
    assert config.ray.progress is False


def test_a_class_prior_may_name_classes_that_yaml_takes_for_something_else() -> None:
    given = load_config(None, ["data.class_prior={no: rare, 7: common, oak: 0.5}"]).data.class_prior
    assert given == {"no": "rare", "7": "common", "oak": 0.5}
    assert load_config(None, ["data.class_prior=uniform"]).data.class_prior == "uniform"
    assert load_config().data.class_prior == "unknown"
