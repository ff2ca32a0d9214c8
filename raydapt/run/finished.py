"""A finished run, opened again: its folder, its settings and the method with what it learned."""

from typing import Any

import yaml

from raydapt.errors import UserError
from raydapt.methods.configuration import config_from_tree
from raydapt.methods.contract import Method
from raydapt.methods.table import spec_of
from raydapt.run.origin import from_its_folder
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from raydapt.train.checkpoint import from_bytes
from raydapt.train.job import CHECKPOINT


def open_run(run_folder: str) -> tuple[Run, Config]:
    """A finished run and its resolved settings, without what nothing but its learning needed.

    Raises:
        UserError: If the folder is no finished run.
    """
    run = Run.at(run_folder)
    if not run.exists("metrics.json") or not run.exists("config.yaml"):
        raise UserError(f"Folder {run_folder!r} is not a finished run: give a folder such as runs/NAME.")
    config = config_from_tree(yaml.safe_load(run.read_bytes("config.yaml")), of_a_run=True)
    return run, from_its_folder(run, spec_of(config.method).finished(config))


def open_folder(run_folder: str) -> tuple[Run, Config]:
    """A run and its resolved settings, finished or not.

    Raises:
        UserError: If the folder is no run.
    """
    run = Run.at(run_folder)
    if not run.exists("config.yaml"):
        raise UserError(f"Folder {run_folder!r} is not a run: give a folder such as runs/NAME.")
    config = config_from_tree(yaml.safe_load(run.read_bytes("config.yaml")), of_a_run=True)
    return run, from_its_folder(run, config)


def load_learned(method: Method, run: Run, config: Config) -> Method:
    """A method that is only to predict, with what a finished run of these settings has learned."""
    if spec_of(config.method).learns:
        method.load_state_dict(from_bytes(run.read_bytes(CHECKPOINT)).method)
    return method


def run_metrics(run_folder: str) -> dict[str, Any]:
    """``metrics.json`` of a finished run.

    Raises:
        UserError: If the folder is no finished run.
    """
    run, _ = open_run(run_folder)
    metrics: dict[str, Any] = run.read_json("metrics.json")
    return metrics
