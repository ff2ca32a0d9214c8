"""Runs that another run is made of: carried out first, each as a run of its own, and then named by their folders."""

import logging
import shlex
from collections.abc import Callable
from typing import Any

from raydapt.errors import UserError
from raydapt.methods.configuration import EverySetting, changed_settings, config_from_tree
from raydapt.methods.table import GROUPS, TABLE, spec_of
from raydapt.settings.config import Config
from raydapt.settings.tree import merge_trees
from raydapt.store.run_record import Run

_LOG = logging.getLogger(__name__)
_NOT_SHARED = ("method", "name", "guard", "predict", "tune", "space", *GROUPS)
"""Members keep their guards whatever becomes of the answer: their verdicts are what the fusion weighs them by."""


def with_members(config: Config, carry_out: Callable[[Config], Run]) -> Config:
    """The same settings, once the runs that its method is made of are there.

    Args:
        config: Of a run.
        carry_out: Makes a run, or finds it.
    """
    members = member_configs(config)
    if not members:
        return config
    folders = []
    for number, member in enumerate(members, start=1):
        _LOG.info(f"{config.method}: run {number} of {len(members)}, {member.method}")
        folders.append(carry_out(member).path)
    return spec_of(config.method).with_members(config, folders)


def member_configs(config: Config) -> list[Config]:
    """The settings of those runs: the recipe of each method, with what this run changes and with its own words.

    Raises:
        UserError: For one that is no method with settings.
    """
    shared = {name: value for name, value in changed_settings(config).items() if name not in _NOT_SHARED}
    shared["model"] = {name: value for name, value in shared.get("model", {}).items() if name != "second"}
    return [_member(words, shared, config.method) for words in spec_of(config.method).members(config)]


def _member(words: str, shared: dict[str, Any], method: str) -> Config:
    name, *overrides = shlex.split(words) or [""]
    if name not in TABLE or not TABLE[name].learns or name == method:
        known = ", ".join(known for known, room in TABLE.items() if room.learns and known != method)
        raise UserError(
            f"Setting {method}.classifiers has {words!r}, which is no method to fuse: begin with one of {known}."
        )
    return config_from_tree(merge_trees({"method": name}, shared, overrides=overrides, kind=EverySetting))
