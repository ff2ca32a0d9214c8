"""What classes look like, in sentences: files of the package or of the user."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raydapt.data.named_sets import named_set, packaged_yaml
from raydapt.errors import UserError
from raydapt.settings.tree import WordsLoader

MAX_CHARACTERS = 1000
_MAX_FILE_BYTES = 64 * 1024 * 1024
_MOST_NAMED = 3
SETTING = "fair.descriptions"


def packaged_descriptions(set_name: str) -> Mapping[str, list[str]] | None:
    """The descriptions that come with the package for a named set, by class name; None for any other name."""
    known = named_set(set_name)
    if known is None:
        return None
    found: Mapping[str, list[str]] = packaged_yaml("descriptions", f"{known.name}.yaml")
    return found


def read_descriptions(path: str) -> Any:
    """The content of a YAML or JSON file (JSON is YAML).

    Raises:
        UserError: If there is no such file, or it is no YAML.
    """
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise UserError(f"Setting {SETTING}={path!r} is larger than any file of descriptions: check the path.")
        return yaml.load(file.read_text(encoding="utf-8-sig"), Loader=WordsLoader)
    except (OSError, ValueError, yaml.YAMLError):
        raise UserError(
            f"Setting {SETTING}={path!r} is no readable YAML or JSON file: give a file of 'class: [description, …]'."
        ) from None


def check_descriptions(given: Any, names: Sequence[str], where: str) -> dict[str, list[str]]:
    """Descriptions of exactly these classes, in their order.

    Args:
        given: What should be a mapping of class names (in any case) to lists of sentences.
        names: The classes of the run.
        where: The origin, for messages.

    Raises:
        UserError: For another kind of content, a class without description, an unknown class, or an empty description.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"Setting {SETTING}: {where} holds no mapping: write 'class: [description, …]' for each class.")
    name_of = {_loose(name): name for name in names}
    found: dict[str, list[str]] = {}
    for key, texts in given.items():
        name = name_of.get(_loose(str(key)))
        if name is None:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the classes are {_listing(names)}"
            raise UserError(
                f"Setting {SETTING}: {where} describes {str(key)!r}, which is no class ({hint}): rename it, or take it "
                "out."
            )
        if name in found:
            raise UserError(f"Setting {SETTING}: {where} describes {name!r} twice: put its descriptions together.")
        found[name] = _sentences([texts] if isinstance(texts, str) else texts, name, where)
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"Setting {SETTING}: {where} has no description of {_listing(missing)}: add some, or set "
            "fair.anchor_text=names."
        )
    return {name: found[name] for name in names}


def _sentences(texts: Any, name: str, where: str) -> list[str]:
    if not isinstance(texts, list) or not texts:
        raise UserError(f"Setting {SETTING}: {where} gives {name!r} no list of descriptions: write at least one.")
    for text in texts:
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARACTERS:
            raise UserError(
                f"Setting {SETTING}: {where} gives {name!r} the description {str(text)[:40]!r}: every description is a "
                f"text of 1 to {MAX_CHARACTERS} characters."
            )
    return [" ".join(text.split()) for text in texts]


def _loose(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(repr(name) for name in names[:_MOST_NAMED]) + more
