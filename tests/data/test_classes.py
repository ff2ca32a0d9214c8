from pathlib import Path

import numpy as np
import pytest

from raydapt.data.classes import ClassSpace, fill_template, resolve_classes
from raydapt.data.sources import Source, resolve_source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from tests.data.images import png
from tests.data.test_webdataset import write_tar

STRANGE = ["and/or", "<b>bold</b>", "{}", "🚀 rocket", "{0!r}", "%s", "a.b", "日本"]


def folders(root: Path, names: list[str]) -> Source:
    for name in names:
        (root / name).mkdir()
        (root / name / "1.png").write_bytes(png(1))
    return resolve_source(str(root), rows_per_part=10)


def space(names: list[str], **options: tuple[object, ...]) -> ClassSpace:
    return ClassSpace(**{"names": tuple(names), "labels": tuple(names), "templates": ("{}",), **options})


def test_from_class_folders(tmp_path: Path) -> None:
    source = folders(tmp_path, ["polka_dot", "zebra", "Grand  Piano"])
    got = resolve_classes(DataSettings(source=str(tmp_path)), source)
    assert got.names == ("Grand Piano", "polka dot", "zebra")
    assert got.labels == ("Grand  Piano", "polka_dot", "zebra")
    assert got.templates[0] == "a photo of a {}."
    assert [got.index_of(label) for label in (*got.labels, "Polka Dot", None, "other")] == [0, 1, 2, 1, -1, -1]


def test_from_a_named_set_and_its_copies() -> None:
    source = resolve_source("digits", rows_per_part=100)
    got = resolve_classes(DataSettings(source="eurosat"), source)
    assert got.names[0] == "annual crop land"
    for label in ("Annual Crop Land", "annual crop land", "AnnualCrop", "annual_crop_land", "0"):
        assert got.index_of(label) == 0
    assert got.index_of("10") == -1
    aircraft = resolve_classes(DataSettings(source="fgvc_aircraft"), source)
    assert aircraft.names[aircraft.index_of("F-16A/B")] == "F-16A-B"
    borrowed = resolve_classes(DataSettings(source="elsewhere", class_names="dtd"), source)
    assert len(borrowed.names) == 47
    assert borrowed.templates[0] == "{} texture."


def test_from_a_list_or_a_file(tmp_path: Path) -> None:
    source = resolve_source("digits", rows_per_part=100)
    names = [" cat ", "dog"]
    assert resolve_classes(DataSettings(class_names=names), source).names == ("cat", "dog")
    file = tmp_path / "names.txt"
    file.write_text("\ufeffcat\r\n\n  dog  \n", encoding="utf-8")
    got = resolve_classes(DataSettings(class_names=str(file), templates=["just {}"]), source)
    assert got.names == ("cat", "dog")
    assert got.templates == ("just {}",)


@pytest.mark.parametrize(
    ("file_name", "text", "names"),
    [
        ("names.json", '["oak", "no", "7"]', ("oak", "no", "7")),
        ("names.yaml", "- oak\n- no\n- 7\n", ("oak", "no", "7")),
        ("id2label.JSON", '{"1": "birch", "0": "oak"}', ("oak", "birch")),
        ("descriptions.yml", "oak: [a tall tree]\nbirch:\n- a white stem\n", ("oak", "birch")),
        ("digits.yaml", "'0': [a ring]\n'1': [a line]\n", ("0", "1")),
        ("oaks.txt", "- oak\n[birch]\n", ("- oak", "[birch]")),
    ],
)
def test_names_in_yaml_and_json(tmp_path: Path, file_name: str, text: str, names: tuple[str, ...]) -> None:
    source = resolve_source("digits", rows_per_part=100)
    (tmp_path / file_name).write_text(text, encoding="utf-8")
    assert resolve_classes(DataSettings(class_names=str(tmp_path / file_name)), source).names == names


@pytest.mark.parametrize("text", ["", "oak", "[oak, [birch]]", "[oak", "- oak\nbirch: 1", "{[1]: oak}"])
def test_yaml_without_a_list_of_names_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="holds no list of names"):
        resolve_classes(
            DataSettings(class_names=str(tmp_path / "names.yaml")), resolve_source("digits", rows_per_part=100)
        )


def test_indices_of_many_labels() -> None:
    names = ["cat", "dog", "A-B", "AB"]
    labels = ["dog", "Cat", None, "x", "A-B", "AB", "a b", "1", "99"] * 2
    got = space(names).indices_of(labels)
    assert got.dtype == np.int64
    assert got.tolist() == [1, 0, -1, -1, 2, 3, -1, 1, -1] * 2
    assert space(["cat", "7"]).index_of("1") == -1
    assert space(["cat", "dog"], aliases=(("kitty", 0),)).index_of("Kitty") == 0


@pytest.mark.parametrize("name", STRANGE)
def test_templates_take_any_name(name: str) -> None:
    assert fill_template("a {} of a kind", name) == "a " + name + " of a kind"


def test_strange_names_are_names() -> None:
    source = resolve_source("digits", rows_per_part=100)
    assert resolve_classes(DataSettings(class_names=STRANGE), source).names == tuple(STRANGE)


FAULTY_NAMES = [
    ([], "gives no class names"),
    (["cat"], "there is one class"),
    (["cat", " Cat"], "more than once"),
    (["straße", "STRASSE"], "more than once"),
    (["é", "e\u0301"], "more than once"),
    (["cat", "  "], "empty name"),
    (["cat", "x" * 201], "201 characters"),
    (["cat", "a\nb"], "control character"),
    ("/no/such/file.txt", "no readable text file"),
    ("/", "no readable text file"),
    ("bad\0path", "no readable text file"),
]


@pytest.mark.parametrize(("names", "words"), FAULTY_NAMES)
def test_faulty_names_are_sentences(names: list[str] | str, words: str) -> None:
    source = resolve_source("digits", rows_per_part=100)
    with pytest.raises(UserError, match=words) as caught:
        resolve_classes(DataSettings(class_names=names), source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{} and {}"], ["{0}"], ["{}" + "x" * 1000]])
def test_faulty_templates_are_sentences(templates: list[str]) -> None:
    with pytest.raises(UserError, match=r"data\.templates"):
        resolve_classes(DataSettings(templates=templates), resolve_source("digits", rows_per_part=100))


def test_folders_that_give_no_classes(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    flat = resolve_source(str(tmp_path), rows_per_part=10)
    with pytest.raises(UserError, match="no class folders"):
        resolve_classes(DataSettings(source=str(tmp_path)), flat)
    assert resolve_classes(DataSettings(source=str(tmp_path), class_names=["a", "b"]), flat).names == ("a", "b")
    (tmp_path / "one").mkdir()
    (tmp_path / "1.png").rename(tmp_path / "one" / "1.png")
    with pytest.raises(UserError, match="there is one class, 'one'"):
        resolve_classes(DataSettings(source=str(tmp_path)), resolve_source(str(tmp_path), rows_per_part=10))


@pytest.mark.parametrize("names", [["images", "masks"], ["fold1", "fold2", "fold_3"], ["JPEGImages", "Annotations"]])
def test_folders_that_divide_a_set_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    source = folders(tmp_path, names)
    with pytest.raises(UserError, match=r"called like parts of a set.*point data\.source at the folder"):
        resolve_classes(DataSettings(source=str(tmp_path)), source)
    stated = DataSettings(source=str(tmp_path), class_names=names)  # who says so means it
    assert resolve_classes(stated, source).names == tuple(names)


def test_one_class_that_is_called_like_a_part_is_a_class(tmp_path: Path) -> None:
    source = folders(tmp_path, ["masks", "visors"])
    assert resolve_classes(DataSettings(source=str(tmp_path)), source).names == ("masks", "visors")


def test_folders_with_the_same_name_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than once"):
        resolve_classes(DataSettings(source=str(tmp_path)), folders(tmp_path, ["polka_dot", "polka dot"]))


def test_names_beside_the_archives_of_clip_benchmark(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    members = {
        f"s{i}.{end}": png(i) if end == "png" else str(i % 2).encode() for i in range(4) for end in ("cls", "png")
    }
    write_tar(tmp_path / "test" / "0.tar", members)
    source = resolve_source(str(tmp_path), rows_per_part=10)
    assert resolve_classes(DataSettings(source=str(tmp_path)), source).names == ("0", "1")
    (tmp_path / "classnames.txt").write_text("tabby cat\nred fox\nowl\n")
    got = resolve_classes(DataSettings(source=str(tmp_path)), source)
    assert got.names == ("tabby cat", "red fox", "owl")
    assert [got.index_of(label) for label in ("0", "1", "fox", "red fox")] == [0, 1, -1, 1]
