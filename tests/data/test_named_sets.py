from collections import Counter
from pathlib import Path

import pytest

from raydapt.data.classes import ClassSpace, resolve_classes
from raydapt.data.named_sets import (
    Protocol,
    annotation_templates,
    default_templates,
    default_thresholds,
    named_set,
    set_names,
)
from raydapt.data.sources import read_label_names, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.stages.images import write_images

SIZES = {
    "digits": 10, "eurosat": 10, "pacs_cartoon": 7, "dtd": 47, "flowers102": 102, "fgvc_aircraft": 100, "resisc45": 45,
    "oxford_pets": 37, "ucf101": 101, "food101": 101, "caltech101": 100, "mnist": 10, "svhn": 10, "fer2013": 7,
    "gtsrb": 43, "cifar10": 10, "cifar100": 100, "fashion_mnist": 10,
}  # fmt: skip


def test_there_are_these_sets() -> None:
    assert set(set_names()) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_every_set_is_whole(name: str) -> None:
    known = named_set(name)
    assert known is not None
    assert len(known.class_names) == len(known.labels) == len(known.grip_names) == SIZES[name]
    for names in (known.class_names, known.labels, known.grip_names):
        assert all(isinstance(n, str) and n.strip() == n and n for n in names)
        assert max(Counter(n.casefold() for n in names).values()) == 1
    assert set(known.aliases.values()) <= set(known.class_names)
    for templates in (known.templates, known.annotation_templates):
        assert all(template.count("{}") == 1 for template in templates)
        assert len(set(templates)) == len(templates) > 0
    for prompt, thresholds in known.thresholds.items():
        assert prompt in ("text", "visual")
        assert 0 < thresholds.alpha <= 1
        assert 0 <= thresholds.beta <= 1
        assert 0 < thresholds.trzsl_m < SIZES[name]
    assert known.hub is None or known.hub.startswith("hf://datasets/")


def test_names_are_found_however_they_are_written() -> None:
    assert named_set("EuroSAT") is named_set("eurosat")
    assert named_set("fgvc-aircraft") is named_set("fgvc_aircraft")
    assert named_set("imagenet") is None


def test_published_values() -> None:
    eurosat = named_set("eurosat")
    assert eurosat is not None
    assert eurosat.templates[0] == "a centered satellite photo of {}."
    assert eurosat.class_names[2] == "herbaceous vegetation land"
    assert eurosat.grip_names[2] == "brushland or shrubland"
    text, visual = eurosat.thresholds["text"], eurosat.thresholds["visual"]
    assert (text.alpha, text.beta, text.trzsl_m) == (0.75, 0.80, 3.0)
    assert (visual.alpha, visual.beta, visual.trzsl_m) == (0.90, 0.80, 2.0)
    assert len(annotation_templates()) == 27
    assert default_templates()[0] == "a photo of a {}."
    assert default_thresholds(10).beta == pytest.approx(0.9)
    assert default_thresholds(1).beta == 0.0


@pytest.mark.parametrize("name", ["eurosat", "pacs_cartoon"])
def test_the_labels_of_the_real_sets_are_all_known(name: str, data_folder: object) -> None:
    data = DataSettings(source=name)
    source = resolve_source(name, rows_per_part=1024)
    space: ClassSpace = resolve_classes(data, source)
    assert sorted(space.indices_of(read_label_names(source))) == list(range(len(space.names)))


def test_protocols_have_the_published_names_and_wordings() -> None:
    """GRIP and CPL: "a photo of a {}" and their names; CoOp: ``trainers/zsclip.py``; LatteCLIP: ``training/abo.py``."""
    coop = {
        "oxford_pets": "a photo of a {}, a type of pet.",
        "flowers102": "a photo of a {}, a type of flower.",
        "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
        "dtd": "{} texture.",
        "eurosat": "a centered satellite photo of {}.",
        "food101": "a photo of {}, a type of food.",
        "ucf101": "a photo of a person doing {}.",
        "caltech101": "a photo of a {}.",
    }
    latteclip = coop | {
        "oxford_pets": "a photo of a {}.",
        "eurosat": "a photo of a {}.",
        "food101": "a photo of a {}, a type of food.",
        "ucf101": "a photo of a person doing {}",
    }
    for name in coop:
        known = named_set(name)
        assert known is not None
        assert known.templates_of("grip") == ("a photo of a {}",)
        assert known.templates_of("coop") == (coop[name],)
        assert known.templates_of("latteclip") == (latteclip[name],)
        assert known.names_of("latteclip") == known.names_of("coop")
    eurosat = named_set("eurosat")
    assert eurosat is not None
    assert eurosat.names_of("grip")[7] == "residential buildings or homes or apartments"
    assert eurosat.names_of("coop")[2] == "Herbaceous Vegetation Land"


@pytest.mark.parametrize("protocol", ["raydapt", "grip", "coop", "latteclip"])
def test_labels_of_a_set_mean_the_same_class_under_every_protocol(protocol: Protocol, tmp_path: Path) -> None:
    """Also when the run's own list of names, written into its settings, is read again."""
    write_images(tmp_path / "a.parquet", 10)
    source = resolve_source(str(tmp_path / "a.parquet"), rows_per_part=64)
    known = named_set("eurosat")
    assert known is not None
    first = resolve_classes(DataSettings(source="eurosat", class_names="eurosat", protocol=protocol), source)
    again = resolve_classes(
        DataSettings(source="eurosat", class_names=list(first.names), templates=list(first.templates)), source
    )
    for classes in (first, again):
        assert classes.names == known.names_of(protocol)
        assert classes.templates == known.templates_of(protocol)
        for c, label in enumerate(known.labels):
            assert classes.index_of(label) == c
        assert classes.index_of("SeaLake") == 9


def test_a_protocol_needs_a_named_set(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", 10)
    source = resolve_source(str(tmp_path / "a.parquet"), rows_per_part=64)
    with pytest.raises(UserError, match=r"data\.protocol=grip takes the names and wordings of a named set"):
        resolve_classes(DataSettings(source=str(tmp_path / "a.parquet"), protocol="grip"), source)
