"""The one table of methods: a new method is a folder beside this file and a line here.

What stands here is light: the settings of every method are known before anything heavy is imported. What a method does
is told by the ``SPEC`` of ``raydapt/methods/NAME/spec.py`` (see `raydapt.methods.spec`), imported when it is asked for.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydapt.errors import UserError
from raydapt.methods.air.settings import AirSettings, air_groups
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.methods.cpl.settings import CplSettings
from raydapt.methods.fair.settings import FairSettings
from raydapt.methods.fpl.settings import FplSettings
from raydapt.methods.fusion.settings import FusionSettings
from raydapt.methods.grip.settings import GripSettings
from raydapt.methods.latteclip.settings import LatteclipSettings
from raydapt.methods.transduct.settings import TransductSettings
from raydapt.methods.wca.settings import WcaSettings

if TYPE_CHECKING:
    from raydapt.methods.spec import MethodSpec
    from raydapt.report.run_files import RunRecord
    from raydapt.report.sections import Section


@dataclass(frozen=True, kw_only=True)
class Room:
    """What is known of a method without importing it.

    Attributes:
        settings: The settings of its own group; None for a method without any.
        groups: The names of all groups that it uses, given the nested settings; None: the group of its own name.
        adapts: False where the answers are the frozen model's own, so that there is no before and after.
        learns: False for classifiers that are only made and asked.
        shared: Groups of shared settings that it goes by and most methods do not.
    """

    settings: type | None = None
    groups: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None
    adapts: bool = True
    learns: bool = True
    shared: tuple[str, ...] = ()


TABLE: dict[str, Room] = {
    "zero_shot": Room(adapts=False, learns=False),
    "ensemble": Room(learns=False),
    "wca": Room(settings=WcaSettings, groups=lambda tree: ("fair", "wca"), learns=False),
    "fpl": Room(settings=FplSettings),
    "grip": Room(settings=GripSettings),
    "cpl": Room(settings=CplSettings),
    "air": Room(settings=AirSettings, groups=air_groups, shared=("synthesis", "lora")),
    "fair": Room(settings=FairSettings),
    "coreg": Room(settings=CoregSettings),
    "latteclip": Room(settings=LatteclipSettings, shared=("caption",)),
    "transduct": Room(settings=TransductSettings, shared=("second",)),
    "fusion": Room(settings=FusionSettings, groups=lambda tree: ("fusion", "transduct"), shared=("second",)),
}
METHODS = tuple(TABLE)
GROUPS: dict[str, type] = {name: room.settings for name, room in TABLE.items() if room.settings is not None}
"""Every group that belongs to some method, and the settings in it."""


def check_method(name: Any) -> str:
    """The name, if it is a method's.

    Raises:
        UserError: For another one.
    """
    if name not in TABLE:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(METHODS)}."
        raise UserError(f"Setting method={name!r} is no method: {hint}")
    return str(name)


def setting_groups(method: str, tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The groups of settings that belong to a method: the one answer to "which settings are mine".

    Args:
        method: Its name.
        tree: The nested settings; AiR uses those of its base as well.
    """
    room = TABLE[method]
    if room.groups is not None:
        return room.groups(tree)
    return () if room.settings is None else (method,)


def recipe_file(method: str) -> Path:
    """The job file that comes with a method: its defaults of shared settings, as published or as measured here."""
    return Path(__file__).parent / method / "job.yaml"


def sections_of(method: str, run: "RunRecord") -> "list[Section]":
    """The method's own sections of a run's report, from ``section.py`` in its folder; imports nothing heavy."""
    if not (Path(__file__).parent / method / "section.py").exists():
        return []
    sections: list[Section] = import_module(f"raydapt.methods.{method}.section").sections(run)
    return sections


def spec_of(method: str) -> "MethodSpec":
    """What a method tells about itself; imports torch."""
    spec: MethodSpec = import_module(f"raydapt.methods.{method}.spec").SPEC
    return spec
