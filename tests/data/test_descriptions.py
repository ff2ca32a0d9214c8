import json
import re
from importlib.resources import files

import pytest
import yaml

from raydapt.data.descriptions import check_descriptions, packaged_descriptions, read_descriptions
from raydapt.data.named_sets import named_set, set_names
from raydapt.errors import UserError

NAMES = ("oak", "Silver Birch", "3")
GOOD = {"oak": ["a broad tree"], "silver_birch": ["white  bark", "thin leaves"], "3": "the digit 3"}
SETS = sorted(path.name.removesuffix(".yaml") for path in files("raydapt.data").joinpath("descriptions").iterdir())


def test_descriptions_come_in_the_order_of_the_classes_whatever_their_spelling():
    found = check_descriptions(GOOD, NAMES, "it")
    assert list(found) == list(NAMES)
    assert found == {"oak": ["a broad tree"], "Silver Birch": ["white bark", "thin leaves"], "3": ["the digit 3"]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"oak": ["x"], "3": ["y"]}, ["no description of 'Silver Birch'", "fair.anchor_text=names"]),
        (GOOD | {"oaks": ["x"]}, ["'oaks', which is no class", "did you mean 'oak'"]),
        (GOOD | {"zebra": ["x"]}, ["'zebra'", "the classes are 'oak'"]),
        (GOOD | {"oak": []}, ["'oak'", "at least one"]),
        (GOOD | {"OAK": ["x"]}, ["describes 'oak' twice"]),
        (GOOD | {"oak": ["fine", "  "]}, ["'oak'", "1 to 1000 characters"]),
        (GOOD | {"oak": [5]}, ["'oak'", "'5'"]),
        (["oak"], ["no mapping"]),
    ],
)
def test_what_does_not_fit_is_one_sentence(given, words):
    with pytest.raises(UserError) as caught:
        check_descriptions(given, NAMES, "'x.yaml'")
    assert "\n" not in str(caught.value)
    for word in ["fair.descriptions", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_files_are_yaml_or_json(tmp_path, suffix):
    path = tmp_path / f"trees.{suffix}"
    path.write_text(json.dumps(GOOD) if suffix == "json" else yaml.safe_dump(GOOD))
    assert read_descriptions(str(path)) == GOOD


@pytest.mark.parametrize("text", [None, "a: b: c", "\x00"])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, text):
    path = tmp_path / "trees.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="no readable YAML"):
        read_descriptions(str(path))


@pytest.mark.parametrize("name", SETS)
def test_the_packaged_descriptions_fit_their_set(name):
    known = named_set(name)
    assert known is not None
    packaged = packaged_descriptions(name)
    assert list(packaged) == list(known.class_names)  # spelled and ordered as the set is
    found = check_descriptions(packaged, known.class_names, name)
    assert len({len(texts) for texts in found.values()}) == 1
    said = [text for texts in found.values() for text in texts]
    assert len(set(said)) == len(said)  # what two classes share tells neither from the other


@pytest.mark.parametrize("name", ["flowers102", "food101", "ucf101", "fgvc_aircraft", "gtsrb", "dtd"])
def test_descriptions_of_fine_classes_are_no_template(name):
    said = [
        re.sub(re.escape(class_), "{}", text, flags=re.IGNORECASE)
        for class_, texts in packaged_descriptions(name).items()
        for text in texts
    ]
    assert len(set(said)) == len(said)


def test_every_named_set_has_descriptions():
    assert set(SETS) == set(set_names())
    assert packaged_descriptions("no such set") is None
