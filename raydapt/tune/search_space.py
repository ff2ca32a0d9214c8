"""What a sweep varies: the ``space`` of a job file, checked, and trials drawn from it."""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain

from raydapt.errors import UserError
from raydapt.methods.configuration import all_setting_names, config_from_tree
from raydapt.methods.table import GROUPS, setting_groups, spec_of
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree

Settings = dict[str, Any]
"""Dotted settings and their values."""

_FIXED = ("name", "runs", "store", "space", "data", "ray", "tune", "features")
"""What makes trials incomparable, or no other result."""
_DIGITS = 4
"""Significant digits of a drawn number: nobody can tell more of them apart, and a YAML of them can be read."""
_DRAWS_PER_TRIAL = 50


def parse_space(config: Config) -> dict[str, Domain]:
    """The space of a job as Ray Tune's domains, without what the job's method does not use.

    Raises:
        UserError: For an empty space, an unknown setting, or a range that is none.
    """
    if not config.space:
        raise UserError(
            "Setting space={} is empty, so there is nothing to search: give some settings, such as "
            "'space: {cpl.alpha: {uniform: [0.5, 0.95]}}'."
        )
    names = [name for name in all_setting_names(config) if name.split(".")[0] not in _FIXED]
    domains: dict[str, Domain] = {}
    for key, given in config.space.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else "see docs/reference/settings.md for all of them."
            raise UserError(f"Setting space names {str(key)!r}, which is no setting that can be searched: {hint}")
        domains[str(key)] = _domain(str(key), given)
    used = {key: domain for key, domain in domains.items() if _matters(key, config)}
    if not used:
        raise UserError(
            f"Setting space={list(domains)} holds nothing that method={config.method!r} uses: add some of its settings."
        )
    return used


def draw_trials(config: Config, space: Mapping[str, Domain]) -> list[Settings]:
    """All trials of a random search or a grid, no two alike; the job's own settings, {}, are the first.

    Raises:
        UserError: If a drawn setting is not valid, or a grid has a range in it.
    """
    if config.tune.search == "grid":
        endless = [key for key, domain in space.items() if not isinstance(domain, Categorical)]
        if endless:
            raise UserError(f"Setting tune.search=grid needs lists: write space.{endless[0]} as {{choice: [...]}}.")
        lists = [domain.categories for domain in space.values() if isinstance(domain, Categorical)]
        drawn = [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]
        trials = _distinct(config, [{}, *drawn])
    else:
        generator = np.random.default_rng(config.tune.seed)
        wanted = config.tune.trials
        points = [_draw(space, generator) for _ in range(wanted * _DRAWS_PER_TRIAL)]
        trials = _distinct(config, [{}, *points])[:wanted]
    for settings in trials:
        trial_config(config, settings)
    return trials


def check_ends(config: Config, space: Mapping[str, Domain]) -> None:
    """Refuses a space of which an end or a choice is not valid, before a search that draws as it goes."""
    for key, domain in space.items():
        ends = domain.categories if isinstance(domain, Categorical) else [_first(domain), _last(domain)]
        for value in ends:
            trial_config(config, {key: value})


def trial_config(config: Config, settings: Mapping[str, Any]) -> Config:
    """The job of one trial: the settings laid over those of the sweep.

    Raises:
        UserError: If a value is not valid.
    """
    tree = as_tree(config_of(config, str(settings.get("method", config.method))))
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    used = setting_groups(str(tree["method"]), tree)
    return config_from_tree({key: value for key, value in tree.items() if key not in GROUPS or key in used})


def rounded(settings: Mapping[str, Any]) -> Settings:
    """Settings with numbers of a few significant digits."""
    return {key: _round(value) for key, value in settings.items()}


def _domain(key: str, given: Any) -> Domain:
    kind, values = "", given
    if isinstance(given, dict) and len(given) == 1:
        kind, values = next(iter(given.items()))
    domain: Domain | None = None
    if kind == "choice" and isinstance(values, list) and values:
        domain = tune.choice(values)
    elif isinstance(values, list) and len(values) == 2 and all(map(_is_number, values)) and values[0] < values[1]:
        low, high = values
        if kind == "integer" and int(low) == low and int(high) == high:
            domain = tune.randint(int(low), int(high) + 1)
        elif kind == "uniform":
            domain = tune.uniform(float(low), float(high))
        elif kind == "loguniform" and low > 0:
            domain = tune.loguniform(float(low), float(high))
    if domain is not None:
        return domain
    raise UserError(
        f"Setting space.{key}={given!r} is no range: write {{uniform: [low, high]}}, {{loguniform: [low, high]}} above "
        "0, {integer: [low, high]} or {choice: [a, b, ...]}."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _matters(key: str, config: Config) -> bool:
    """Whether a setting changes the result of the job's method, or of one of those that the space chooses from."""
    methods = {config.method, *_choices(config, "method")}
    bases = [{"air": {"base": base}} for base in (*_choices(config, "air.base"),)] or [as_tree(config)]
    used = {group for method in methods for tree in (as_tree(config), *bases) for group in setting_groups(method, tree)}
    if any(spec_of(method).synthetic_images(config_of(config, method)) for method in methods):
        used |= {"synthesis", "lora"}
    group = key.split(".")[0]
    if group in (*GROUPS, "synthesis", "lora"):
        return group in used
    if key == "model.prompt" or key.startswith(("model.text_prompt", "model.visual_prompt")):
        return any(spec_of(method).prompt(config_of(config, method)) is not None for method in methods)
    return True


def _choices(config: Config, key: str) -> tuple[Any, ...]:
    given = config.space.get(key)
    return tuple(given.get("choice", ())) if isinstance(given, Mapping) else ()


def config_of(config: Config, method: str) -> Config:
    """The job's settings for another method, whose own groups are its recipe's."""
    if method == config.method:
        return config
    shared = {key: value for key, value in as_tree(config).items() if key not in GROUPS}
    return config_from_tree(shared | {"method": method})


def _draw(space: Mapping[str, Domain], generator: np.random.Generator) -> Settings:
    return rounded({key: domain.sample(random_state=generator) for key, domain in space.items()})


def _distinct(config: Config, points: Sequence[Settings]) -> list[Settings]:
    """Points without those that say the same as an earlier one, be it in other words (the job's own values)."""
    names, seen, kept = sorted({key for point in points for key in point}), set(), []
    tree = as_tree(config)
    for point in points:
        values = repr([point.get(name, _value(tree, name)) for name in names])
        if values not in seen:
            seen.add(values)
            kept.append(point)
    return kept


def _value(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for step in key.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _round(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _first(domain: Any) -> Any:
    return domain.lower


def _last(domain: Any) -> Any:
    return domain.upper - 1 if isinstance(domain.upper, int) else domain.upper
