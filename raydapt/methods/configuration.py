"""From job files and ``key=value`` overrides to the configuration of a run. Imports nothing heavy.

Settings are laid over each other: the defaults, the recipe of the method (``job.yaml`` in its folder), the job file,
the overrides. ``load_config("jobs/cpl.yaml", ["data.source=eurosat", "seed=0"])`` is the only way in.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

from raydapt.errors import UserError
from raydapt.methods.table import GROUPS, METHODS, TABLE, check_method, recipe_file, setting_groups
from raydapt.settings.config import Config
from raydapt.settings.tree import (
    apply_override,
    as_tree,
    difference,
    merge_trees,
    read_yaml,
    setting_names,
    settings_from_tree,
)

DEFAULT_METHOD = "cpl"
EverySetting = make_dataclass("EverySetting", list(GROUPS.items()), bases=(Config,), frozen=True, kw_only=True)
"""The shared settings and the groups of every method, to be asked for the type that a setting has."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies ``key=value`` overrides and checks every setting.

    Args:
        path: A job file; None takes the recipe of the method.
        overrides: Dotted keys, such as ``train.epochs=5``; values are YAML.

    Raises:
        UserError: For a missing or broken file, an unknown key, a setting of another method, or a value of the wrong
            kind.
    """
    tree: dict[str, Any] = {} if path is None else read_yaml(path)
    for item in overrides:
        apply_override(tree, item, kind=EverySetting)
    return config_from_tree(tree)


def load_job(job: str | None, overrides: Sequence[str] = (), *, recipe: str | None = None) -> Config:
    """A job as the command line names it: a method, a job file, or overrides alone.

    Args:
        job: The name of a method, the path of a YAML file, or an override.
        overrides: Dotted keys and values.
        recipe: Name of a folder of the package whose ``job.yaml`` stands in for a job file where none is given.

    Raises:
        UserError: As `load_config`.
    """
    given = list(overrides)
    if job is not None and "=" in job:
        given, job = [job, *given], None
    elif job in TABLE:
        given, job = [f"method={job}", *given], None
    elif job is not None and Path(job).suffix not in (".yaml", ".yml") and not Path(job).exists():
        near = difflib.get_close_matches(job, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(METHODS)}, or a file."
        raise UserError(f"Job {job!r} is neither a method nor a job file: {hint}")
    if job is None and recipe is not None:
        return load_config(Path(__file__).parents[1] / recipe / "job.yaml", given)
    return load_config(job, given)


def config_from_tree(tree: Mapping[str, Any], *, of_a_run: bool = False) -> Config:
    """The configuration of nested settings.

    Args:
        tree: The settings; what is missing comes from the method's recipe, then from the defaults.
        of_a_run: The settings stand in a run folder: older ones hold the groups of every method, which are passed over.

    Raises:
        UserError: As `load_config`.
    """
    method = check_method(tree.get("method", DEFAULT_METHOD))
    recipe = recipe_file(method)
    merged = merge_trees(read_yaml(recipe), dict(tree)) if recipe.exists() else dict(tree)
    groups = setting_groups(method, merged)
    given = {name: merged.pop(name) for name in GROUPS if name in merged}
    for name in given:
        if name not in groups and not of_a_run:
            raise UserError(_foreign(method, name, given[name], groups))
    names = tuple(key for name in groups for key in setting_names(GROUPS[name], f"{name}."))
    shared = settings_from_tree(Config, {**merged, "method": method}, others=(*groups, *names))
    own: dict[str, Any] = {
        name: settings_from_tree(GROUPS[name], given.get(name, {}), prefix=f"{name}.") for name in groups
    }
    return replace(shared, own=own)


def changed_settings(config: Config) -> dict[str, Any]:
    """The settings that the method's recipe does not have already: a short job file that means the same."""
    default = as_tree(config_from_tree({"method": config.method}))
    groups = {name: as_tree(GROUPS[name]()) for name in config.own if name not in default}
    return {"method": config.method} | difference(as_tree(config), default | groups)


def all_setting_names(config: Config) -> list[str]:
    """Every dotted setting that exists for some method, for what chooses among several of them."""
    own = [key for name, kind in GROUPS.items() for key in setting_names(kind, f"{name}.")]
    return [*setting_names(type(config)), *own]


def _foreign(method: str, group: str, value: Any, groups: Sequence[str]) -> str:
    key = f"{group}.{next(iter(value))}" if isinstance(value, dict) and value else group
    own = f"its own settings are those of {' and '.join(groups)}" if groups else "it has no settings of its own"
    return f"Setting {key}: method {method} does not use {group}.*, {own}: leave it out, or set method={group}."
