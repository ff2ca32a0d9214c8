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

from raydapt.data.named_sets import NamedSet, default_templates, named_set
from raydapt.data.sources import Source, read_label_names
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings

MAX_NAME_CHARACTERS = 200
MAX_TEMPLATE_CHARACTERS = 1000
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

    def index_of(self, label: str | None) -> int:
        """The class of a stored label; -1 for none and for a label that is no class.

        A label is looked up as it is, then among the aliases, then regardless of case and punctuation; a number that is
        found nowhere is a position in the list of classes.
        """
        if label is None:
            return -1
        index = self._exact.get(label)
        if index is None:
            index = self._loose.get(_loose(label))
        if index is None and label.isdecimal() and int(label) < len(self.names) and not self._numbered:
            index = int(label)
        return -1 if index is None else index

    def indices_of(self, labels: Iterable[str | None]) -> npt.NDArray[np.int64]:
        """The classes of many stored labels, as `index_of`; int64 [N]."""
        known: dict[str | None, int] = {}
        return np.array([_remember(known, label, self) for label in labels], np.int64)

    @cached_property
    def _exact(self) -> dict[str, int]:
        index = dict(self.aliases)
        index.update({name: i for i, name in enumerate(self.names)})
        index.update({label: i for i, label in enumerate(self.labels)})
        return index

    @cached_property
    def _loose(self) -> dict[str, int]:
        """Spellings without case and punctuation, as far as they mean one class alone."""
        meanings: dict[str, set[int]] = {}
        for spelling, i in self._exact.items():
            meanings.setdefault(_loose(spelling), set()).add(i)
        return {spelling: min(i) for spelling, i in meanings.items() if spelling and len(i) == 1}

    @cached_property
    def _numbered(self) -> bool:
        return any(spelling.isdecimal() for spelling in self._exact)


def resolve_classes(data: DataSettings, source: Source) -> ClassSpace:
    """Finds the class names and templates of a run and checks them.

    Names come from `data.class_names` (a list, a text file with one name a line, or the name of a named set), else from
    the named set, else from the labels of the source. Templates come from `data.templates`, else from the named set.

    Raises:
        UserError: For no names, a single class, the same name twice, an empty or overlong name, or a template without
            exactly one ``{}``.
    """
    known = named_set(data.source)
    if isinstance(data.class_names, str) and data.class_names != "auto" and named_set(data.class_names):
        known = named_set(data.class_names)
        names, labels = _names_of_set(known)
    elif data.class_names != "auto":
        given = data.class_names if isinstance(data.class_names, list) else read_names(data.class_names)
        names = labels = tuple(str(name).strip() for name in given)
    elif known:
        names, labels = _names_of_set(known)
    else:
        labels = read_label_names(source)
        names = tuple(" ".join(label.replace("_", " ").split()) for label in labels)
    _check_names(names, data, source)
    if data.templates == "auto":
        templates = known.templates if known else default_templates()
    else:
        templates = tuple(data.templates)
    check_templates(templates)
    aliases = _aliases(known, names) if known else ()
    return ClassSpace(names=names, labels=labels, templates=templates, aliases=aliases)


def fill_template(template: str, name: str) -> str:
    """Puts a class name in the place of ``{}``, whatever characters the name has."""
    return template.replace("{}", name, 1)


def read_names(path: str) -> tuple[str, ...]:
    """Reads class names from a text file, one a line; empty lines are skipped."""
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _MAX_NAMES_FILE_BYTES:
            raise UserError(f"data.class_names={path!r} is larger than any list of names: check the path.")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):  # ValueError: no UTF-8, or no possible path
        raise UserError(
            f"data.class_names={path!r} is no readable text file: give a list of names, or a file with one name a line."
        ) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _names_of_set(known: NamedSet | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (known.class_names, known.labels) if known else ((), ())


def _aliases(known: NamedSet, names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    position = {name: i for i, name in enumerate(names)}
    return tuple((alias, position[name]) for alias, name in known.aliases.items() if name in position)


def _check_names(names: Sequence[str], data: DataSettings, source: Source) -> None:
    if not names:
        raise UserError(
            f"data.class_names={data.class_names!r} gives no class names, and {source.uri!r} has no class folders or "
            "labels to take them from: set data.class_names to a list, or to a text file with one name a line."
        )
    if len(names) < 2:
        raise UserError(f"data.class_names: there is one class, {names[0]!r}; at least two are needed.")
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
    again = [name for name, times in Counter(_same(name) for name in names).items() if times > 1]
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


def _same(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _loose(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())
