"""Image sets that have a name: their class names, prompt wordings and thresholds, kept in ``named_sets.yaml``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

import yaml

Protocol = Literal["raydapt", "grip", "coop", "latteclip"]
"""Whose class names and prompt wordings a named set has."""
_GRIP_TEMPLATE = "a photo of a {}"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a set needs of CPL."""

    alpha: float
    """Quantile of the images' top probabilities, 0 to 1 (intra-image rule)."""
    beta: float
    """Quantile of a class's column, 0 to 1 (inter-image rule)."""
    trzsl_m: float
    """In TRZSL beta is 1 - m / C."""


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """What is known of an image set by its name."""

    name: str
    class_names: tuple[str, ...]
    """The names used in prompts, in the published order."""
    labels: tuple[str, ...]
    """What the images are labelled with, in the same order."""
    grip_names: tuple[str, ...]
    """The names in GRIP's published splits, in the same order."""
    coop_names: tuple[str, ...]
    """The names in CoOp's, in the same order."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Labels that other copies of the set use, with the class name that they mean."""
    templates: tuple[str, ...]
    """Prompt wordings; the first is the prompt, all are the ensemble."""
    annotation_templates: tuple[str, ...]
    """The wordings that vote in the annotation of Co-Reg."""
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)
    """CPL thresholds for the prompts ``text`` and ``visual``, as far as they were published."""
    latteclip_template: str
    """The prompt of LatteCLIP's code."""
    hub: str | None = None
    """Where a copy is, as an ``hf://`` address."""

    @property
    def wordings(self) -> tuple[tuple[str, ...], ...]:
        """The lists of class names under which the set is known."""
        return self.class_names, self.grip_names, self.coop_names

    def names_of(self, protocol: Protocol) -> tuple[str, ...]:
        """The class names of a published protocol, or raydapt's."""
        return {"raydapt": self.class_names, "grip": self.grip_names}.get(protocol, self.coop_names)

    def templates_of(self, protocol: Protocol) -> tuple[str, ...]:
        """The wordings of a published protocol, which has but one, or raydapt's."""
        if protocol == "raydapt":
            return self.templates
        return ({"grip": _GRIP_TEMPLATE, "coop": self.templates[0]}.get(protocol, self.latteclip_template),)


def named_set(name: str) -> NamedSet | None:
    """The set of that name (in any case, with ``-`` or ``_``), or None."""
    return _sets().get(name.lower().replace("-", "_"))


def set_names() -> tuple[str, ...]:
    """The names of all named sets."""
    return tuple(_sets())


def set_of_names(names: Sequence[str], *, first: NamedSet | None = None) -> NamedSet | None:
    """The set that has exactly these class names in this order, `first` before the others; None if there is none.

    The names may be those of any protocol.
    """
    candidates = ([first] if first else []) + list(_sets().values())
    return next((known for known in candidates if tuple(names) in known.wordings), None)


def default_templates() -> tuple[str, ...]:
    """Prompt wordings for sets that are not known: a plain prompt first, then an ensemble."""
    return tuple(_document()["default"]["templates"])


def annotation_templates() -> tuple[str, ...]:
    """The 27 wordings of Co-Reg that fit any set."""
    return tuple(_document()["default"]["annotation_templates"])


def default_thresholds(n_classes: int) -> Thresholds:
    """CPL thresholds for sets without published ones, by the authors' rule of thumb beta = 1 - m / C."""
    values = _document()["default"]["thresholds"]
    m = float(values["m"])
    return Thresholds(alpha=float(values["alpha"]), beta=max(1.0 - m / n_classes, 0.0), trzsl_m=m)


@lru_cache(maxsize=1)
def _sets() -> Mapping[str, NamedSet]:
    return MappingProxyType({name: _set(name, values) for name, values in _document()["sets"].items()})


def _set(name: str, values: Mapping[str, Any]) -> NamedSet:
    names = tuple(values["class_names"])
    return NamedSet(
        name=name,
        class_names=names,
        labels=tuple(values.get("labels", names)),
        grip_names=tuple(values.get("grip_names", names)),
        coop_names=tuple(values.get("coop_names", names)),
        aliases=MappingProxyType(values.get("aliases", {})),
        templates=tuple(values["templates"]) if "templates" in values else default_templates(),
        annotation_templates=tuple(values.get("annotation_templates", annotation_templates())),
        thresholds=MappingProxyType({prompt: Thresholds(**numbers) for prompt, numbers in
                                     values.get("thresholds", {}).items()}),
        latteclip_template=values.get("latteclip_template", default_templates()[0]),
        hub=values.get("hub"),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _document() -> Any:
    return packaged_yaml("named_sets.yaml")


def packaged_yaml(*path: str) -> Any:
    """The content of a YAML file beside this one."""
    text = files("raydapt.data").joinpath(*path).read_text(encoding="utf-8")
    # By libyaml where PyYAML has it: half a second less for every command.
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
