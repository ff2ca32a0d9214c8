"""What a method tells the report and the comparison of finished runs: its sections, its settings, what it learns.

Reads settings as plain trees, so that runs of earlier releases can be shown as well, and imports nothing heavy.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from raydapt.methods.air import section as air
from raydapt.methods.coreg import section as coreg
from raydapt.methods.fair import section as fair
from raydapt.methods.latteclip import section as latteclip
from raydapt.report.compare import compare
from raydapt.report.facts import RunFacts
from raydapt.report.page import write_report
from raydapt.report.run_files import RunRecord, group, open_run, read_run
from raydapt.report.sections import Section
from raydapt.settings.config import METHODS, Config
from raydapt.settings.tree import as_tree
from raydapt.store.folder import Folder

_SECTIONS: dict[str, Callable[[RunRecord], list[Section]]] = {
    "air": air.sections,
    "coreg": coreg.sections,
    "fair": fair.sections,
    "latteclip": latteclip.sections,
}
_PROMPTS = {"text": "text prompt", "visual": "visual prompt", "both": "text and visual prompts"}
_LEARN_NOTHING = ("zero_shot", "ensemble", "wca")
# Groups of settings that belong to a verb, or to a stage that most methods do not have.
_OF_STAGES = {"synthesis": ("air",), "lora": ("air",), "caption": ("latteclip",)}
_OF_VERBS = ("describe", "tune", "space")


def write_run_report(run_folder: str | Path | Folder) -> str:
    """Writes ``report.html`` of a finished run, with its method's own sections, and returns its path.

    Raises:
        UserError: When the folder is no run, or cannot be written.
    """
    run = read_run(open_run(run_folder))
    sections_of = _SECTIONS.get(_method(run.config, run.metrics))
    return write_report(run, sections_of(run) if sections_of else (), facts_of(run.config, run.metrics))


def compare_runs(run_folders: Iterable[str | Path | Folder]) -> pd.DataFrame:
    """One row per dataset, paradigm and method with its settings; see `raydapt.report.compare.compare`."""
    return compare(run_folders, facts_of)


def facts_of(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> RunFacts:
    """What report and comparison need to know of a run's method."""
    method = _method(config, metrics)
    return RunFacts(
        groups=_groups(method, config),
        learned=_learned(method, config),
        adapts=method != "zero_shot",
        rank=METHODS.index(method) if method in METHODS else len(METHODS),
        defaults=as_tree(Config()),
    )


def _method(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    return str(metrics.get("method", config.get("method", "?")))


def _groups(method: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The shared groups that the method goes by, and those of methods: its own, AiR's base, WCA's of FAIR."""
    others = {"air": (_base(config),), "wca": ("fair",)}.get(method, ())
    names = dict.fromkeys([*(f.name for f in fields(Config)), *config])
    held_out = bool(group(config, "synthesis").get("held_out"))
    return tuple(
        name
        for name in names
        if name not in _OF_VERBS
        and (name not in METHODS or name in (method, *others))
        and (name not in _OF_STAGES or method in _OF_STAGES[name] or (name != "caption" and held_out))
        and not (name == "train" and method in _LEARN_NOTHING)
    )


def _base(config: Mapping[str, Any]) -> str:
    return str(group(config, "air").get("base", "cpl"))


def _learned(method: str, config: Mapping[str, Any]) -> str:
    """What a run learns, in words; empty where it learns nothing."""
    own = group(config, method)
    if method in _LEARN_NOTHING:
        return ""
    if method == "coreg":
        return f"two {own.get('student', 'small')} students"
    if method == "latteclip":
        return latteclip.learned(str(own.get("tune", "full")), str(own.get("towers", "both")))
    if method == "fair":
        parts = {"learn_anchors": "class anchors", "layer_norms": "LayerNorms of the image tower"}
        return " and ".join(words for key, words in parts.items() if own.get(key, True))
    prompt = str(group(config, "model").get("prompt", "text"))
    return _PROMPTS.get(prompt, prompt)
