"""Settings as nested dictionaries: read from YAML, overridden, merged, and checked against a frozen dataclass."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from raydapt.errors import UserError
from raydapt.settings.types import HIDDEN

Settings = TypeVar("Settings")


class WordsLoader(yaml.SafeLoader):
    """YAML with the truth values of version 1.2: ``yes``, ``no``, ``on`` and ``off`` are words and may name classes."""


_TRUTH = "tag:yaml.org,2002:bool"
WordsLoader.yaml_implicit_resolvers = {
    letter: [(tag, words) for tag, words in resolvers if tag != _TRUTH]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
WordsLoader.add_implicit_resolver(_TRUTH, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def settings_from_tree(
    kind: type[Settings], tree: dict[str, Any], *, prefix: str = "", others: Sequence[str] = ()
) -> Settings:
    """Builds any frozen settings dataclass from nested dictionaries.

    Args:
        kind: The dataclass.
        tree: The settings; what is missing keeps its default.
        prefix: What stands before the names in messages, such as ``cpl.``.
        others: Further names that an unknown one may be meant for.

    Raises:
        UserError: For an unknown key or a value of the wrong kind.
    """
    if not isinstance(tree, dict):
        raise UserError(f"Setting {prefix.rstrip('.')!r} is a group of settings but has the value {tree!r}.")
    _refuse_unknown(kind, tree, prefix, others)
    try:
        checked: Settings = _adapter(kind).validate_python(tree)
    except ValidationError as error:
        raise UserError(_sentence(kind, error, prefix)) from None
    return checked


# Built once for every kind: building takes longer than all else that reading settings does.
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def as_tree(config: Any) -> dict[str, Any]:
    """The settings as plain dictionaries and lists, ready for YAML or JSON; a method's own groups beside the others."""
    tree: dict[str, Any] = dataclasses.asdict(config)
    own: dict[str, Any] = tree.pop("own", {})
    return tree | own


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping; a missing file or another content is a `UserError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except IsADirectoryError:
        raise UserError(
            f"{str(path)!r} is a folder and no job file: write data.source={str(path)!r} if the images are there."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Job file {str(path)!r} cannot be read ({error}): give the path of a YAML file.") from None
    try:
        tree = yaml.load(text, Loader=WordsLoader)
    except yaml.YAMLError as error:
        place = str(error).replace("\n", " ")
        raise UserError(f"Job file {str(path)!r} is not valid YAML ({place}): mend it.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"Job file {str(path)!r} holds a {type(tree).__name__}: it must hold 'key: value' settings.")
    return tree


def apply_override(tree: dict[str, Any], item: str, *, kind: Any = None) -> None:
    """Applies one ``dotted.key=value`` in place.

    The value is read as YAML, but a text is taken as it stands: with ``#``, ``: `` and whatever else YAML would take
    for its own. What `kind` knows as a text, or a list of texts, is one also where YAML would read a number, a date or
    a truth value (``data.source=2024``, ``data.class_names=[yes, no]``).

    Args:
        tree: Changed.
        item: The override.
        kind: The settings that the tree is of, if they are to be asked for their types.
    """
    key, equals, text = item.partition("=")
    if _is_path(item, key):
        raise UserError(f"{item!r} is a path and no setting: write data.source={item!r} if the images are there.")
    if not equals or not key:
        raise UserError(f"Override {item!r} has no '=': write key=value, such as train.epochs=5.")
    value = _value_of(text, None if kind is None else _hint_of(kind, key))
    *parents, last = key.split(".")
    node = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise UserError(f"Override {item!r}: {name!r} is a value, not a group of settings: check the key.")
    node[last] = value


def _is_path(item: str, key: str) -> bool:
    """Whether an override is an address, which may have an ``=`` in it (``/photos/date=2024``)."""
    return "/" in key or "\\" in key or ("=" not in item and Path(item).exists())


def _value_of(text: str, hint: Any) -> Any:
    """What the text after the ``=`` means, for a setting of that type (None: not known)."""
    stripped = text.strip()
    takes = _choices(hint)
    if stripped.startswith("{") and any(get_origin(one) is dict for one in takes):
        return _mapping_of(text, stripped)
    is_text = str in takes and stripped.lower() not in ({"null", "~"} if type(None) in takes else set())
    loader = yaml.BaseLoader if is_text or list[str] in takes else yaml.SafeLoader
    try:
        value = yaml.load(text, Loader=loader) if stripped else ""
    except yaml.YAMLError:
        return stripped
    if isinstance(value, list | dict):
        return value if stripped[0] in "[{" and (not is_text or list[str] in takes) else stripped
    quoted = len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'"
    return stripped if not quoted and (isinstance(value, str) or is_text) else value


def _mapping_of(text: str, stripped: str) -> Any:
    """A mapping whose keys are texts also where YAML would read a number or a truth value (``{no: rare}``)."""
    try:
        keys, values = yaml.load(text, Loader=yaml.BaseLoader), yaml.safe_load(text)
    except yaml.YAMLError:
        return stripped
    return dict(zip(keys, values.values(), strict=False)) if isinstance(values, dict) else stripped


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types that a setting may have."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return tuple(choice for one in get_args(hint) for choice in _choices(one))
    return (hint,)


def _hint_of(kind: Any, key: str) -> Any:
    """The type of a dotted setting; None for one that is none."""
    for name in key.split("."):
        if not dataclasses.is_dataclass(kind):
            return None
        kind = _hints(kind).get(name)
    return kind


def setting_names(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted setting name, depth first."""
    hints = _hints(kind)
    for item in dataclasses.fields(kind):
        if item.metadata == HIDDEN:
            continue
        if dataclasses.is_dataclass(hints[item.name]):
            yield from setting_names(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


def _refuse_unknown(kind: Any, tree: dict[str, Any], prefix: str, others: Sequence[str] = ()) -> None:
    hints = {item.name: _hints(kind)[item.name] for item in dataclasses.fields(kind) if item.metadata != HIDDEN}
    for key, value in tree.items():
        if key not in hints or str(key).startswith("__"):
            everything = [*setting_names(kind, prefix), *(prefix + name for name in hints), *others]
            near = difflib.get_close_matches(f"{prefix}{key}", everything, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else "see docs/reference/settings.md for all of them."
            raise UserError(f"Unknown setting {prefix + str(key)!r}: {hint}")
        inner = hints[key]
        if dataclasses.is_dataclass(inner):
            if not isinstance(value, dict):
                raise UserError(f"Setting {prefix + key!r} is a group of settings but has the value {value!r}.")
            _refuse_unknown(inner, value, f"{prefix}{key}.")


def _sentence(kind: Any, error: ValidationError, prefix: str) -> str:
    """One sentence for the first fault that pydantic found, with the choices where there are any."""
    names = set(setting_names(kind))
    first = error.errors(include_url=False)[0]
    path = [str(step) for step in first["loc"]]
    # A union adds its branch to the location ("train.lr.literal['auto']"): cut back to the setting.
    key = next((".".join(path[:n]) for n in range(len(path), 0, -1) if ".".join(path[:n]) in names), ".".join(path))
    same = [e for e in error.errors(include_url=False) if ".".join(map(str, e["loc"])).startswith(key)]
    wants = " or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in same))
    value = same[-1]["input"] if len(same) == 1 else _value_at(error, key)
    return f"Setting {prefix}{key}={value!r} is not valid: {wants}."


def _value_at(error: ValidationError, key: str) -> Any:
    depth = len(key.split("."))
    shortest = min(
        (e for e in error.errors() if ".".join(map(str, e["loc"])).startswith(key)), key=lambda e: len(e["loc"])
    )
    return shortest["input"] if len(shortest["loc"]) >= depth else None


def merge_trees(*trees: dict[str, Any], overrides: Sequence[str] = (), kind: Any = None) -> dict[str, Any]:
    """Nested settings laid over each other, the later ones on top, then the overrides; the trees stay as they are."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            below = [merged[key]] if isinstance(merged.get(key), dict) else []
            merged[key] = merge_trees(*below, value) if isinstance(value, dict) else value
    for item in overrides:
        apply_override(merged, item, kind=kind)
    return merged


def difference(tree: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The settings of `tree` that are not those of `default`."""
    changed: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict) and default[key]:
            if inner := difference(value, default[key]):
                changed[key] = inner
        elif value != default.get(key):
            changed[key] = value
    return changed
