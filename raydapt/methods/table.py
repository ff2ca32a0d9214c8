"""The one table of methods: a new method is a folder beside this file and a line here.

What stands here is light: the settings of every method are known before anything heavy is imported. What a method does
is told by the ``SPEC`` of ``raydapt/methods/NAME/spec.py`` (see `raydapt.methods.spec`), imported when it is asked for.
"""

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
from raydapt.methods.grip.settings import GripSettings
from raydapt.methods.latteclip.settings import LatteclipSettings

if TYPE_CHECKING:
    from raydapt.methods.spec import MethodSpec


@dataclass(frozen=True, kw_only=True)
class Room:
    """What is known of a method without importing it.

    Attributes:
        settings: The settings of its own group; None for a method without any.
        groups: The names of all groups that it uses, given the nested settings; None: the group of its own name.
    """

    settings: type | None = None
    groups: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None


TABLE: dict[str, Room] = {
    "zero_shot": Room(),
    "ensemble": Room(),
    "wca": Room(groups=lambda tree: ("fair",)),
    "fpl": Room(settings=FplSettings),
    "grip": Room(settings=GripSettings),
    "cpl": Room(settings=CplSettings),
    "air": Room(settings=AirSettings, groups=air_groups),
    "fair": Room(settings=FairSettings),
    "coreg": Room(settings=CoregSettings),
    "latteclip": Room(settings=LatteclipSettings),
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
        raise UserError(f"Setting method={name!r} is not valid: choose one of {', '.join(METHODS)}.")
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


def spec_of(method: str) -> "MethodSpec":
    """What a method tells about itself; imports torch."""
    spec: MethodSpec = import_module(f"raydapt.methods.{method}.spec").SPEC
    return spec
