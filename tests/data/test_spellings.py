"""Names of people, by chance: no spelling of a label, a class or a path may mean something else without a word.

A few seconds by default; ``RAYDAPT_SPELLINGS_MINUTES=10`` looks for ten minutes, and ``-rP`` tells at how many.
"""

import csv
import io
import os
import tarfile
import time
import unicodedata
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydapt.data.classes import ClassSpace, resolve_classes
from raydapt.data.files import JUNK_FOLDERS
from raydapt.data.labels import find_classes
from raydapt.data.sources import read_label_names, read_part, read_row_labels, resolve_source
from raydapt.data.spelling import loose, normal, prompt_name, same_name
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.settings.groups import DataSettings
from tests.data.images import png

MINUTES = float(os.environ.get("RAYDAPT_SPELLINGS_MINUTES", "0"))
QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))  # fmt: skip
# Half of any letters, half of what stands in real names: numbers, signs with a meaning, separators, accents.
_WORDS = "C C++ C# A+ A- A a 1 01 1.0 2 10 -1 1.5 15 café cafe\u0301 cafe Ångström ﬁ fi ß ss x² x2 no yes null train "
_WORDS += "test val cat Cat CAT dog's dogs and/or F-16A/B F-16A-B a_b a-b ab %s {} #2 : 日本 はし ばし कि का 🚀 İ i ı "
_WORDS += "St. St 3-5 35 3:2 32 10% & salt (a) [b]"
WORDS = st.sampled_from(_WORDS.split())
ANY = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12)
NAMES = st.one_of(WORDS, ANY, st.builds("{} {}".format, WORDS, WORDS), st.builds("{}{}".format, WORDS, ANY))
LISTS = st.lists(NAMES.map(normal).filter(bool), min_size=2, max_size=6, unique_by=same_name)
FOLDER = NAMES.map(lambda name: name.replace("/", "∕")).filter(  # what a file system takes, and a listing shows
    lambda name: name.strip() == name and not name.startswith((".", "~")) and len(name.encode()) < 200
    and name.isprintable() and name not in JUNK_FOLDERS)  # fmt: skip

_FOLDERS = "train val test trainval unlabeled Training_set test1 seg_train seg_test labeled cat dog dogs images a b 1"
PATHS = st.lists(st.one_of(st.sampled_from(_FOLDERS.split()), FOLDER), max_size=4).map(tuple)


def space(names: list[str], first_label: int | None = 0) -> ClassSpace:
    labels = tuple(names)
    return ClassSpace(names=labels, labels=labels, templates=("{}",), first_label=first_label)


def meaning(text: str) -> str:
    """Letters, digits and signs of a name in one case; separators may be written in any way, or not at all."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return "".join(c for c in folded if not c.isspace() and c not in "_()[]{}“”„«»-‐‑‒–—/.,:;'’")


def check_a_label_is_its_class_or_none(names: list[str], label: str) -> None:
    classes = space(names)
    for i, name in enumerate(names):
        for form in ("NFC", "NFD"):
            assert classes.index_of(unicodedata.normalize(form, name)) == i
    found = classes.index_of(label)
    if found >= 0 and normal(label) != names[found]:
        is_number = normal(label).rstrip("0").rstrip(".").lstrip("0").isdecimal() or not meaning(label).strip("0")
        assert meaning(label) == meaning(names[found]) or is_number, (label, names[found])
        assert not [n for i, n in enumerate(names) if i != found and normal(n) == normal(label)]


def check_loose_spellings_differ_in_separators_alone(one: str, other: str) -> None:
    if loose(one) == loose(other):
        assert meaning(one) == meaning(other)
    assert loose(one) == loose(unicodedata.normalize("NFD", one)) == loose(f" {one} ")


def check_numbers_are_places_or_refused(numbers: list[int], n_classes: int) -> None:
    classes = space([f"name {chr(97 + i)}" for i in range(n_classes)], first_label=None)
    labels = [str(number) for number in numbers]
    try:
        found, findings = find_classes(classes, labels)
    except UserError:
        assert 0 not in numbers
        return
    assert 0 in numbers or min(numbers) > n_classes
    assert found.tolist() == [n if n < n_classes else -1 for n in numbers]
    assert findings.unknown_images == sum(n >= n_classes for n in numbers)


def check_class_folders_come_back_as_they_are(names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "1.png").write_bytes(png(1))
        try:
            source = resolve_source(folder, rows_per_part=2)
        except UserError:
            return  # said, which is all that is asked
        rows = [row for part in source.parts for row in read_part(part, DataSettings()).to_pylist()]
        if source.label_names:
            assert sorted(row["label"] for row in rows) == sorted(names)
            assert all(row["path"] == f"{row['label']}/1.png" for row in rows)
            fresh = read_row_labels(source)
            assert fresh is not None
            assert list(fresh.labels) == [row["label"] for row in rows]
            check_round_trip(source.label_names, folder)
        else:  # all of them are called as splits are
            assert source.splits


def check_round_trip(labels: tuple[str, ...], uri: str) -> None:
    """The classes of a run, and those that its stored settings give, know the same labels."""
    source = resolve_source(uri, rows_per_part=2)
    try:
        at_run = resolve_classes(DataSettings(source=uri), source)
    except UserError:
        return
    later = resolve_classes(DataSettings(source=uri, class_names=list(at_run.names)), source)
    assert at_run.indices_of(labels).tolist() == later.indices_of(labels).tolist() == list(range(len(labels)))


def check_trees_are_read_or_refused(paths: list[tuple[str, ...]]) -> None:
    names = sorted({"/".join((*path, "1.png")) for path in paths})
    with TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(png(1))
        try:
            source = resolve_source(folder, rows_per_part=2)
        except UserError:
            return
        rows = [row for part in source.parts for row in read_part(part, DataSettings()).to_pylist()]
        assert sorted(row["path"] for row in rows) == names
        for row in rows:
            above = row["path"].split("/")[:-1]
            assert row["label"] is None or row["label"] in above
            assert row["split"] is None or any(row["split"] in part.lower() for part in above)
        assert {row["label"] for row in rows} - {None} == set(source.label_names)


def check_columns_of_labels_come_back_as_they_are(labels: list[str]) -> None:
    with TemporaryDirectory() as folder:
        pq.write_table(pa.table({"image": [png(0)] * len(labels), "label": labels}), f"{folder}/x.parquet")
        source = resolve_source(folder, rows_per_part=2)
        fresh = read_row_labels(source)
        assert fresh is not None
        assert list(fresh.labels) == [label if label.strip() else None for label in labels]
        assert set(read_label_names(source)) == {label for label in labels if label.strip()}


def check_images_in_archives_are_all_there(names: list[str]) -> None:
    members = {f"d/{name}.png": png(i) for i, name in enumerate(names) if not name.startswith("__")}
    if not members:
        return
    with TemporaryDirectory() as folder:
        with tarfile.open(f"{folder}/x.tar", "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        source = resolve_source(folder, rows_per_part=2)
        found = {row["path"] for part in source.parts for row in read_part(part, DataSettings()).to_pylist()}
        missing = {f"x.tar/{name}" for name in members} - found
        # ``a.mask.png`` belongs to ``a.png``, as WebDataset has it.
        stems = {name.removesuffix(".png") for name in members}
        assert all(path.removeprefix("x.tar/").rpartition("/")[2].split(".")[0] in {s[2:] for s in stems}
                   for path in missing), missing  # fmt: skip


def check_lists_of_images_come_back_as_they_are(names: list[str], labels: list[str], with_suffix: bool) -> None:
    pairs = list(zip(names, labels, strict=False))
    with TemporaryDirectory() as folder:
        for i, (name, _) in enumerate(pairs):
            (Path(folder) / f"{name}.png").write_bytes(png(i))
        with (Path(folder) / "l.csv").open("w", newline="", encoding="utf-8") as sink:
            end = ".png" if with_suffix else ""
            csv.writer(sink).writerows([["path", "label"], *([f"{name}{end}", label] for name, label in pairs)])
        try:
            source = resolve_source(f"{folder}/l.csv", rows_per_part=2)
        except UserError:
            return
        rows = [row for part in source.parts for row in read_part(part, DataSettings()).to_pylist()]
        told = {row["path"]: row["label"] for row in rows if row["error"] is None}
        meant = {f"{name}.png": label.strip() or None for name, label in pairs}
        assert all(meant[path] == label for path, label in told.items())
        missing = len(meant) - len(told)
        assert not missing or "no image that is there" in " ".join(source.notes), (meant, told)


def check_texts_on_the_command_line_are_taken_as_they_stand(text: str) -> None:
    stripped = text.strip()
    if stripped[:1] in ("'", '"') and stripped[:1] == stripped[-1:]:
        return
    assert load_config(None, [f"data.source={text}"]).data.source == stripped


CHECKS: dict[Callable[..., None], tuple[st.SearchStrategy, ...]] = {
    check_a_label_is_its_class_or_none: (LISTS, NAMES),
    check_loose_spellings_differ_in_separators_alone: (NAMES, NAMES),
    check_numbers_are_places_or_refused: (st.lists(st.integers(0, 8), min_size=1, max_size=8), st.integers(2, 6)),
    check_class_folders_come_back_as_they_are: (
        st.lists(FOLDER, min_size=2, max_size=5, unique_by=lambda name: same_name(prompt_name(name))),
    ),
    check_trees_are_read_or_refused: (st.lists(PATHS, min_size=2, max_size=7),),
    check_columns_of_labels_come_back_as_they_are: (st.lists(NAMES, min_size=2, max_size=6),),
    check_images_in_archives_are_all_there: (st.lists(FOLDER, min_size=1, max_size=6, unique=True),),
    check_lists_of_images_come_back_as_they_are: (
        st.lists(FOLDER, min_size=2, max_size=6, unique=True),
        st.lists(NAMES, min_size=2, max_size=6),
        st.booleans(),
    ),
    check_texts_on_the_command_line_are_taken_as_they_stand: (NAMES,),
}


def look(check: Callable[..., None], how: settings) -> int:
    """Tries a check with values by chance, and tells with how many."""
    tried = 0

    @wraps(check)
    def counted(**values: object) -> None:
        nonlocal tried
        tried += 1
        check(**values)

    how(given(*CHECKS[check])(counted))()
    return tried


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_spellings(check: Callable[..., None]) -> None:
    assert look(check, QUICK)


@pytest.mark.slow
@pytest.mark.skipif(not MINUTES, reason="RAYDAPT_SPELLINGS_MINUTES says how long to look.")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_spellings_for_long(check: Callable[..., None]) -> None:
    ends = time.monotonic() + 60 * MINUTES / len(CHECKS)
    tried = 0
    while time.monotonic() < ends:
        tried += look(check, settings(QUICK, max_examples=300, derandomize=False))
    print(f"{check.__name__}: {tried} examples")


def test_a_class_that_is_almost_called_as_a_folder_of_the_system_is_a_class(tmp_path: Path) -> None:
    for name in ("C", "LOST+FOUND", "lost+found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(1))
    assert resolve_source(str(tmp_path), rows_per_part=2).label_names == ("C", "LOST+FOUND")
