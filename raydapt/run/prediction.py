"""An adapted run on other images: predictions, and accuracies where there are labels."""

import json
from dataclasses import replace
from typing import Any

import torch

from raydapt.errors import UserError
from raydapt.run import evaluation as outcome
from raydapt.run.finished import load_learned, open_run, split_folder
from raydapt.run.plan import Plan, make_plan
from raydapt.settings.config import Config, config_from_tree
from raydapt.settings.tree import apply_override, as_tree
from raydapt.stages.artefacts import FEATURES, artefacts_of, make_artefacts
from raydapt.stages.features import FeatureTable, load_features, load_labels
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import fingerprint
from raydapt.store.run_record import Run, safe_name
from raydapt.train.job import build_for_prediction, images_of
from raydapt.train.ray_train import local_place


def predict(run_folder: str, overrides: list[str], *, output: str | None = None) -> str:
    """Predicts all images of a source with an adapted run.

    Args:
        run_folder: A finished run.
        overrides: Settings on top of the run's, such as ``data.source=photos/``.
        output: Folder to write to; by default ``predictions/<source>`` in the run folder.

    Returns:
        The path of ``predictions.parquet``: id, path, split, label, zero_shot, predicted, and their confidences.

    Raises:
        UserError: For a folder that is no run, or a source that cannot be read.
    """
    applied = _apply(run_folder, overrides, all_images=True)
    return _write(applied, output)


def evaluate_on(run_folder: str, overrides: list[str]) -> str:
    """Measures an adapted run on labelled images of its classes, by default the test images of its own set.

    Returns:
        The measured accuracies as JSON; the same stands in ``metrics.json`` beside the predictions.

    Raises:
        UserError: As `predict`, and when no image has a label that is one of the classes.
    """
    applied = _apply(run_folder, overrides, all_images=False)
    class_T = torch.from_numpy(applied.plan.classes.indices_of([applied.labels[row] for row in applied.row_T.tolist()]))
    n_classes = len(applied.plan.classes.names)
    before, after = outcome.compare_guesses(applied.before, applied.after, class_T, n_classes, None, None)
    if after.top1 is None:
        raise UserError(
            f"Setting data.source={applied.plan.config.data.source!r} has no image with a label among the classes of "
            "the run: use 'raydapt predict', or give data.class_names."
        )
    path = _write(applied, None)
    metrics = {
        "run": applied.run.name,
        "dataset": applied.plan.config.data.source,
        "images": after.images,
        "zero_shot": before.as_dict(),
        "adapted": after.as_dict(),
    }
    text = json.dumps(metrics, indent=2)
    applied.run.write_text(f"{_folder_name(applied.plan)}/metrics.json", text + "\n")
    return f"{text}\nPredictions: {path}"


class _Applied:
    """A run's answers for a source."""

    def __init__(
        self, run: Run, plan: Plan, table: FeatureTable, labels: list[str | None], row_T: torch.Tensor
    ) -> None:
        self.run, self.plan, self.table, self.labels, self.row_T = run, plan, table, labels, row_T
        self.before: outcome.Guesses
        self.after: outcome.Guesses


def _apply(run_folder: str, overrides: list[str], *, all_images: bool) -> _Applied:
    run, config = open_run(run_folder)
    tree: dict[str, Any] = as_tree(config)
    for item in overrides:
        apply_override(tree, item)
    wanted = config_from_tree(tree)
    frozen = ("method", "model", "seed", "air", "latteclip")
    if any(getattr(wanted, key) != getattr(config, key) for key in frozen):
        raise UserError(f"Settings {', '.join(frozen)} belong to the run {run.name}: only data.* can be changed here.")
    plan = make_plan(wanted)
    artefacts = artefacts_of(make_artefacts(plan, to_learn=False))
    table, labels = load_features(artefacts[FEATURES]), load_labels(artefacts[FEATURES])
    row_T = table.valid_N.nonzero().flatten()
    if not all_images:
        tests = [i for i in row_T.tolist() if table.split_N[i] in (None, *wanted.data.test_splits)]
        row_T = torch.tensor(tests, dtype=torch.int64) if tests else row_T
    if not len(row_T):
        raise UserError(f"Setting data.source={wanted.data.source!r} has no image that can be read: give another one.")
    applied = _Applied(run, plan, table, labels, row_T)
    _answer(applied, artefacts)
    return applied


def _answer(applied: _Applied, artefacts: dict[str, Artefact]) -> None:
    config, table, row_T = applied.plan.config, applied.table, applied.row_T
    place, batch_size = local_place(config.train), config.train.predict_batch_size
    classes = applied.plan.classes
    plain = build_for_prediction(replace(config, method="zero_shot"), classes, place.device)
    applied.before = outcome.guess(plain, table.feature_ND, row_T, batch_size=batch_size, device=place.device)
    method = load_learned(build_for_prediction(config, classes, place.device, artefacts), applied.run, config)
    images = images_of(method.reads, table, artefacts)
    applied.after = outcome.guess(method, images, row_T, batch_size=batch_size, device=place.device)


def run_of_job(config: Config) -> str:
    """The folder that a run of these settings has."""
    return f"{config.runs.rstrip('/')}/{Run(config.runs, make_plan(config).run_name).name}"


def run_metrics(run_folder: str) -> dict[str, Any]:
    """``metrics.json`` of a finished run.

    Raises:
        UserError: If the folder is no finished run.
    """
    run, _ = open_run(run_folder)
    metrics: dict[str, Any] = run.read_json("metrics.json")
    return metrics


def _write(applied: _Applied, output: str | None) -> str:
    table = outcome.predictions_table(
        applied.table, applied.labels, applied.plan.classes, applied.row_T, applied.before, applied.after
    )
    target = applied.run if output is None else Run(*split_folder(output))
    name = "predictions.parquet" if output is not None else f"{_folder_name(applied.plan)}/predictions.parquet"
    target.write_bytes(name, outcome.parquet_bytes(table))
    return target.file(name)


def _folder_name(plan: Plan) -> str:
    """A folder of its own for every source and class list that a run is applied to."""
    short = safe_name(plan.config.data.source.rstrip("/").rsplit("/", 1)[-1], limit=40)
    return f"predictions/{short}-{fingerprint('applied', as_tree(plan.config.data), [plan.source.identity])[:8]}"
