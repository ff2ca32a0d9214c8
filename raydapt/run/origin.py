"""The folder that a run was started in, which relative paths of its settings start from."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raydapt.data import files
from raydapt.data.named_sets import set_names
from raydapt.errors import UserError
from raydapt.settings.config import Config
from raydapt.store.run_record import Run

_LOG = logging.getLogger(__name__)


def from_its_folder(run: Run, config: Config) -> Config:
    """The settings of a run with its source, store and models from the folder that it was started in, wherever we are.

    That folder is known where the run lies in it as its relative `runs` says; else nothing changes.
    """
    base = _started_in(run, config)
    if base is None or base == Path.cwd():
        return config
    source, store = config.data.source, config.store
    if _is_relative(source) and (base / source).exists():
        source = str(base / source)
        _LOG.info(f"data.source={config.data.source!r} of the run is {source}, from the folder that it was started in.")
    if _is_relative(store) and (base / store).is_dir():
        store = str(base / store)
    model = replace(config.model, clip=_model(base, config.model.clip), second=_model(base, config.model.second))
    return replace(config, data=replace(config.data, source=source), model=model, store=store)


def require_own_source(run: Run, config: Config, overrides: Sequence[str]) -> None:
    """Refuses a relative source of a run that is not here, with what it was relative to.

    Raises:
        UserError: When no other source is given, and the run's own is no path from here.
    """
    source = config.data.source
    if any(item.startswith("data.source=") for item in overrides) or not _is_relative(source) or Path(source).exists():
        return
    base = _started_in(run, config)
    where = "" if base is None else f", which was {base}"
    raise UserError(
        f"Setting data.source={source!r} of the run {run.name} is relative to the folder that the run was started in"
        f"{where}, and there is no such path: give data.source=PATH, or go to that folder."
    )


def _started_in(run: Run, config: Config) -> Path | None:
    """The folder that a run's relative `runs` starts from; None where the run was moved or `runs` is absolute."""
    if not run.folder.local or not _is_relative(config.runs):
        return None
    holder, runs = Path(run.folder.path).absolute().parent, Path(config.runs)
    depth = len(runs.parts)
    if ".." in runs.parts or holder.parts[len(holder.parts) - depth :] != runs.parts:
        return None
    return Path(*holder.parts[: len(holder.parts) - depth])


def _model(base: Path, name: str) -> str:
    """The name of a model, with its folder or its file of weights in full if that lies below `base`."""
    path = name.removeprefix("local-dir:")
    if name in ("mini", "none", "self") or not _is_relative(path):
        return name
    if (base / path).exists():
        return f"{name.removesuffix(path)}{base / path}"
    architecture, _, file = name.partition("/")
    return f"{architecture}/{base / file}" if file and (base / file).is_file() else name


def _is_relative(path: str) -> bool:
    """Whether a setting names a path from the working folder, and no set, address or pattern."""
    named = path.lower() in ("digits", *set_names()) or "://" in path or files.is_pattern(path)
    return bool(path.strip()) and not named and not path.startswith("~") and not Path(path).is_absolute()
