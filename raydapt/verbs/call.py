"""From the arguments of a Python call to settings. Imports nothing heavy."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from raydapt.errors import UserError
from raydapt.settings.config import Config


def config_of(
    settings: Mapping[str, Any] | None, source: str | Path, given: Mapping[str, Any], *, recipe: str | None = None
) -> Config:
    """The checked settings of a call; None stands for what is not given, and `settings` go over the arguments."""
    from raydapt.data.sources import check_source
    from raydapt.methods.configuration import load_job

    named = {"data.source": source, **given}
    chosen = {key: value for key, value in named.items() if value is not None} | dict(settings or {})
    lists = {key: value if isinstance(value, str | Mapping) else _plain(value) for key, value in chosen.items()}
    config = load_job(None, overrides_of(lists), recipe=recipe)
    check_source(config.data.source)
    return config


def _plain(value: Any) -> Any:
    """Sequences of any kind (tuples, a column of a table) as lists."""
    return list(value) if isinstance(value, Iterable) else value


def overrides_of(settings: Mapping[str, Any] | None) -> list[str]:
    """Dotted settings as ``key=value`` overrides.

    Raises:
        UserError: For a value that is no number, text, list or mapping.
    """
    return [f"{key}={_as_yaml(key, value)}" for key, value in (settings or {}).items()]


def _as_yaml(key: str, value: Any) -> str:
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    try:
        text = yaml.safe_dump([plain], default_flow_style=True, allow_unicode=True, width=2**31 - 1)
    except yaml.YAMLError:
        raise UserError(
            f"Setting {key}={value!r} is a {type(value).__name__}: give a number, a text, a list or a mapping."
        ) from None
    return text.strip()[1:-1]
