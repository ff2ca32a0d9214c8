"""What a method tells the report and the comparison of finished runs: its sections, its settings, what it learns.

Reads settings as plain trees, so that runs of earlier releases can be shown as well, and imports nothing heavy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from raydapt.errors import UserError
from raydapt.methods.configuration import config_from_tree
from raydapt.methods.table import GROUPS, METHODS, TABLE, sections_of, setting_groups, spec_of
from raydapt.report.compare import compare
from raydapt.report.facts import RunFacts
from raydapt.report.page import write_report
from raydapt.report.run_files import group, open_run, read_run
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree
from raydapt.store.folder import Folder

# Groups of settings that belong to a verb, or to a stage that most methods do not have.
_OF_STAGES = ("synthesis", "lora", "caption")
_OF_VERBS = ("describe", "tune", "space")


def write_run_report(run_folder: str | Path | Folder) -> str:
    """Writes ``report.html`` of a finished run, with its method's own sections, and returns its path.

    Raises:
        UserError: When the folder is no run, or cannot be written.
    """
    run = read_run(open_run(run_folder))
    method = _method(run.config, run.metrics)
    return write_report(run, sections_of(method, run) if method in TABLE else [], facts_of(run.config, run.metrics))


def compare_runs(run_folders: Iterable[str | Path | Folder]) -> pd.DataFrame:
    """One row per dataset, paradigm and method with its settings; see `raydapt.report.compare.compare`."""
    return compare(run_folders, facts_of)


def facts_of(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> RunFacts:
    """What report and comparison need to know of a run's method."""
    method = _method(config, metrics)
    groups = setting_groups(method, config) if method in TABLE else ()
    return RunFacts(
        groups=_groups(method, groups, config),
        learned=_learned(method, config, metrics),
        adapts=method not in TABLE or TABLE[method].adapts,
        rank=METHODS.index(method) if method in TABLE else len(METHODS),
        defaults=as_tree(Config()) | {name: as_tree(GROUPS[name]()) for name in groups},
    )


def _method(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    return str(metrics.get("method", config.get("method", "?")))


def _groups(method: str, own: tuple[str, ...], config: Mapping[str, Any]) -> tuple[str, ...]:
    """The shared groups that the method goes by, and those of methods: its own, AiR's base, WCA's of FAIR."""
    room = TABLE.get(method)
    shared = (
        *(room.shared if room else ()),
        *(("synthesis", "lora") if group(config, "synthesis").get("held_out") else ()),
    )
    names = dict.fromkeys([*(f.name for f in fields(Config) if f.name != "own"), *config])
    return tuple(
        name
        for name in names
        if name not in _OF_VERBS
        and (name not in GROUPS or name in own)
        and (name not in _OF_STAGES or name in shared)
        and not (name == "train" and room is not None and not room.learns)
    )


def _learned(method: str, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """What a run learns, in words; empty where it learns nothing. Runs of earlier releases do not hold it."""
    room = TABLE.get(method)
    if room is None or not room.learns:
        return ""
    known = metrics.get("learned")
    if known:
        return str(known)
    try:
        return spec_of(method).learned(config_from_tree({**config, "method": method}, of_a_run=True))
    except UserError:  # settings that an earlier release allowed
        return ""
