"""A finished run, opened again: its folder, its settings and the method with what it learned."""

from collections.abc import Mapping

import torch
import yaml

from raydapt.config import Config, config_from_tree
from raydapt.data.classes import ClassSpace
from raydapt.errors import UserError
from raydapt.methods.build import LEARNING_METHODS
from raydapt.methods.contract import Method
from raydapt.train.checkpoint import from_bytes
from raydapt.train.job import CHECKPOINT, build_for_prediction
from raydapt.workspace import Artefact, Run


def open_run(run_folder: str) -> tuple[Run, Config]:
    """A finished run and its resolved settings.

    Raises:
        UserError: If the folder is no finished run.
    """
    run = Run(*split_folder(run_folder))
    if not run.exists("metrics.json") or not run.exists("config.yaml"):
        raise UserError(f"Folder {run_folder!r} is not a finished run: give a folder such as runs/NAME.")
    return run, config_from_tree(yaml.safe_load(run.read_bytes("config.yaml")))


def split_folder(path: str) -> tuple[str, str]:
    """The folder that a folder lies in, and its name."""
    root, _, name = path.rstrip("/").rpartition("/")
    return root or ".", name


def learned_method(
    run: Run,
    config: Config,
    classes: ClassSpace,
    device: torch.device,
    artefacts: Mapping[str, Artefact] | None = None,
) -> Method:
    """The method of a finished run, to predict with.

    Args:
        run: The folder.
        config: Its settings.
        classes: What it is to tell apart, which need not be the classes that it learned from.
        device: Where to put it.
        artefacts: For a method that looks at synthetic images when it predicts.
    """
    method = build_for_prediction(config, classes, device, artefacts)
    if config.method in LEARNING_METHODS:
        method.load_state_dict(from_bytes(run.read_bytes(CHECKPOINT)).method)
    return method
