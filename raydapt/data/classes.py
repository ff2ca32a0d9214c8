"""The classes of a run: the names that stand in prompts, the labels that images carry, the prompt wordings."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from raydapt.data import webdataset
from raydapt.data.class_features import ClassFeatures, read_class_features
from raydapt.data.named_sets import NamedSet, Protocol, default_templates, named_set, set_of_names
from raydapt.data.sources import Source, read_label_names
from raydapt.data.spelling import loose, normal, position, prompt_name, same_name
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings

_PART_OF_A_SET = re.compile(
    r"(images?|imgs?|jpegimages|photos?|pictures?|masks?|labels?|annotations?|segmentations?|thumbnails?"
    r"|(fold|part|batch|shard|chunk|split)[ _-]?\d+)",
    re.IGNORECASE,
)
_FEWEST_CAPTIONS = 4
MAX_NAME_CHARACTERS = 200
MAX_TEMPLATE_CHARACTERS = 1000
_STRUCTURED = (".yaml", ".yml", ".json")
_MAX_NAMES_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ClassSpace:
    """The classes in their order, which is the order of logits and of published splits."""

    names: tuple[str, ...]
    """What stands in prompts."""
    labels: tuple[str, ...]
    """What images of the class are labelled with in the source."""
    templates: tuple[str, ...]
    """Prompt wordings with one ``{}`` each; the first is the prompt, all are the ensemble."""
    aliases: tuple[tuple[str, int], ...] = ()
    """Other labels that copies of the set use, with the class that they mean."""
    first_label: int | None = None
    """The number that stands for the first class where labels are numbers; None where the user did not say (0)."""

    def index_of(self, label: str | None) -> int:
        """The class of a stored label; -1 for none and for a label that is no class.

        A label is looked up as it is (in any normal form of Unicode), then among the aliases, then in other spellings
        of the same name (see `raydapt.data.spelling`). Where no class is called by a number, a number is a place in the
        list of classes, counted from `first_label`; `raydapt.data.labels` refuses those that may be counted otherwise.
        """
        if label is None:
            return -1
        index = self.index_of_name(label)
        if index is None and (number := self.place_of(label)) is not None:
            index = number - (self.first_label or 0)
        return index if index is not None and 0 <= index < len(self.names) else -1

    def index_of_name(self, label: str) -> int | None:
        """The class that is called by the label; None if none is, whatever number the label may be."""
        for key in (normal(label), prompt_name(label)):
            if (index := self._exact.get(key)) is not None:
                return index
        index = self._loose.get(loose(label))
        if index is None and (number := position(label)) is not None:
            index = self._exact.get(str(number))  # "3.0" and "03" where the classes are called 0 to 9
        return index

    def place_of(self, label: str) -> int | None:
        """The number that the label is, where numbers are places in the list of classes; else None."""
        return None if self._numbered or self.index_of_name(label) is not None else position(label)

    def indices_of(self, labels: Iterable[str | None]) -> npt.NDArray[np.int64]:
        """The classes of many stored labels, as `index_of`; int64 [N]."""
        known: dict[str | None, int] = {}
        return np.array([_remember(known, label, self) for label in labels], np.int64)

    @cached_property
    def spellings(self) -> tuple[str, ...]:
        """Every label that is known to mean a class, for hints."""
        return (*self.labels, *self.names, *(alias for alias, _ in self.aliases))

    @cached_property
    def _exact(self) -> dict[str, int]:
        index = {normal(alias): i for alias, i in self.aliases}
        index.update({normal(name): i for i, name in enumerate(self.names)})
        index.update({normal(label): i for i, label in enumerate(self.labels)})
        return index

    @cached_property
    def _loose(self) -> dict[str, int]:
        """Spellings without case and separators, as far as they mean one class alone."""
        meanings: dict[str, set[int]] = {}
        for spelling, i in self._exact.items():
            meanings.setdefault(loose(spelling), set()).add(i)
        return {spelling: min(i) for spelling, i in meanings.items() if spelling and len(i) == 1}

    @cached_property
    def _numbered(self) -> bool:
        return any(position(spelling) is not None for spelling in self._exact)


def resolve_classes(data: DataSettings, source: Source) -> ClassSpace:
    """Finds the class names and templates of a run and checks them.

    Names come from `data.class_names` (a list, a text file with one name a line, or the name of a named set), else from
    the class embeddings, the named set, or the labels of the source. Templates come from `data.templates`, else from
    the class embeddings or the named set.

    Raises:
        UserError: For no names, a single class, the same name twice, an empty or overlong name, or a template without
            exactly one ``{}``.
    """
    known = named_set(data.source)
    _check_protocol(data, known)
    features = _given_features(data)
    if isinstance(data.class_names, str) and data.class_names != "auto" and named_set(data.class_names):
        known = named_set(data.class_names)
        names, labels = _names_of_set(known, data.protocol)
    elif data.class_names != "auto":
        given = data.class_names if isinstance(data.class_names, list) else read_names(data.class_names)
        names = labels = tuple(normal(str(name)) for name in given)
        if listed := set_of_names(names, first=known):  # as the settings of a run of that set have them
            labels = listed.labels
    elif features is not None:
        names = labels = features.names
    elif known:
        names, labels = _names_of_set(known, data.protocol)
    else:
        other = {normal(label) for label in data.other_labels}
        labels = tuple(label for label in read_label_names(source) if normal(label) not in other)
        _refuse_captions(labels, source)
        _refuse_parts(labels, source)
        names = tuple(prompt_name(label) for label in labels)
        if source.kind == "tar" and (beside := webdataset.listed_names(source)) and _are_places(labels, len(beside)):
            names = labels = tuple(normal(name) for name in beside)
    _check_names(names, data, source)
    if features is not None:
        templates = features.templates if data.templates == "auto" else tuple(data.templates)
        features.embeddings(names, templates)  # which refuses what the file does not have
    elif data.templates == "auto":
        templates = known.templates_of(data.protocol) if known else default_templates()
    else:
        templates = tuple(data.templates)
    if features is None:
        check_templates(templates)
    meant = set_of_names(names, first=known) or known
    aliases = _aliases(meant, names) if meant else ()
    first = None if data.first_label == "auto" else data.first_label
    return ClassSpace(names=names, labels=labels, templates=templates, aliases=aliases, first_label=first)


def _given_features(data: DataSettings) -> ClassFeatures | None:
    if data.class_features is None:
        return None
    return read_class_features(data.class_features, data.class_names if isinstance(data.class_names, list) else None)


def fill_template(template: str, name: str) -> str:
    """Puts a class name in the place of ``{}``, whatever characters the name has."""
    return template.replace("{}", name, 1)


def read_names(path: str) -> tuple[str, ...]:
    """Reads class names from a text file, one a line (empty lines are skipped), or from a YAML or JSON file.

    The latter holds a list, or a mapping: from numbers to names, as ``id2label`` of Hugging Face, or from names to
    anything, as a file of descriptions.
    """
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _MAX_NAMES_FILE_BYTES:
            raise UserError(f"data.class_names={path!r} is larger than any list of names: check the path.")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):  # ValueError: no UTF-8, or no possible path
        raise UserError(
            f"data.class_names={path!r} is no readable text file: give a list of names, or a file with one name a line."
        ) from None
    if file.suffix.lower() in _STRUCTURED:
        return _listed_names(text, path)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _listed_names(text: str, path: str) -> tuple[str, ...]:
    try:
        given = yaml.load(text, Loader=yaml.BaseLoader)  # which takes every name for a text, also `no` and `7`
    except yaml.YAMLError:
        given = None
    if isinstance(given, dict):
        by_number = [given.get(str(place)) for place in range(len(given))]
        given = by_number if all(isinstance(name, str) for name in by_number) else list(given)
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UserError(
            f"data.class_names={path!r} holds no list of names: write one name a line into a text file, or a list into "
            "a YAML or JSON file."
        )
    return tuple(name.strip() for name in given)


def _are_places(labels: Sequence[str], n_classes: int) -> bool:
    """Whether labels are numbers that count classes from 0."""
    numbers = [position(label) for label in labels]
    return bool(numbers) and 0 in numbers and all(n is not None and n < n_classes for n in numbers)


def _names_of_set(known: NamedSet | None, protocol: Protocol) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (known.names_of(protocol), known.labels) if known else ((), ())


def _check_protocol(data: DataSettings, known: NamedSet | None) -> None:
    if isinstance(data.class_names, str):
        known = named_set(data.class_names) or known
    if data.protocol != "raydapt" and known is None:
        raise UserError(
            f"Setting data.protocol={data.protocol} takes the names and wordings of a named set, and "
            f"{data.source!r} is none: name one in data.source or data.class_names, or give names and data.templates."
        )


def _aliases(known: NamedSet, names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    position = {name: i for i, name in enumerate(names)}
    if tuple(names) in known.wordings:  # aliases mean raydapt's names
        position |= {name: i for i, name in enumerate(known.class_names)}
    return tuple((alias, position[name]) for alias, name in known.aliases.items() if name in position)


def _refuse_captions(labels: Sequence[str], source: Source) -> None:
    """Refuses to take for classes what is another sentence for nearly every image."""
    words = sum(len(label.split()) for label in labels)
    if len(labels) >= _FEWEST_CAPTIONS and 2 * len(labels) >= (source.rows or 0) > 0 and words >= 4 * len(labels):
        raise UserError(
            f"data.class_names='auto': the {source.rows:,} images of {source.uri!r} have {len(labels):,} different "
            f"labels, such as {labels[0][:80]!r}, which look like captions: set data.class_names to a list."
        )


def _refuse_parts(labels: Sequence[str], source: Source) -> None:
    """Refuses to take for classes the folders that a set is divided into."""
    if source.kind == "files" and len(labels) >= 2 and all(_PART_OF_A_SET.fullmatch(label) for label in labels):
        told = ", ".join(repr(label) for label in labels[:4])
        raise UserError(
            f"data.class_names='auto': the folders of {source.uri!r} ({told}) are called like parts of a set, not like "
            "classes: point data.source at the folder whose images are meant, or set data.class_names to a list."
        )


def _check_names(names: Sequence[str], data: DataSettings, source: Source) -> None:
    if not names:
        raise UserError(
            f"data.class_names={data.class_names!r} gives no class names, and {source.uri!r} has no class folders or "
            "labels to take them from: set data.class_names to a list, or to a text file with one name a line"
            + (", or unpack the archives if their folders are the classes." if source.kind == "tar" else ".")
            + "".join(f" {note}" for note in source.notes)
        )
    if len(names) < 2:
        raise UserError(
            f"data.class_names: there is one class, {names[0]!r}; at least two are needed: set "
            "data.class_names to a list." + "".join(f" {note}" for note in source.notes)
        )
    for name in names:
        if not name.strip():
            raise UserError("data.class_names holds an empty name: remove it.")
        if len(name) > MAX_NAME_CHARACTERS:
            raise UserError(
                f"data.class_names: {name[:40] + '…'!r} has {len(name)} characters; "
                f"at most {MAX_NAME_CHARACTERS} are allowed."
            )
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise UserError(f"data.class_names: {name!r} holds a control character: remove it.")
    again = [name for name, times in Counter(same_name(name) for name in names).items() if times > 1]
    if again:
        raise UserError(
            f"data.class_names holds {again[0]!r} more than once (case is ignored): every class needs its name."
        )


def check_templates(templates: Sequence[str], *, setting: str = "data.templates") -> None:
    """Refuses wordings that a class name cannot be put into, with a `UserError` that names the setting."""
    if not templates:
        raise UserError(f"{setting} is empty: give at least one wording, such as 'a photo of a {{}}.'.")
    for template in templates:
        if template.count("{}") != 1 or len(template) > MAX_TEMPLATE_CHARACTERS:
            raise UserError(
                f"{setting}: {template[:80]!r} must hold exactly one {{}}, the place of the class name, "
                f"and at most {MAX_TEMPLATE_CHARACTERS} characters."
            )


def _remember(known: dict[str | None, int], label: str | None, space: ClassSpace) -> int:
    if label not in known:
        known[label] = space.index_of(label)
    return known[label]
