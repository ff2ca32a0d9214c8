"""An adapted run on other images: predictions, and accuracies where there are labels."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from raydapt.artefacts.features import FeatureTable, load_features, require_readable_tests, rows_of_splits
from raydapt.artefacts.inputs import images_of
from raydapt.data.labels import LabelFindings
from raydapt.data.splits import seen_unseen_classes
from raydapt.errors import UserError
from raydapt.methods.configuration import EverySetting, config_from_tree
from raydapt.methods.predictions import Classifier, Predictions
from raydapt.run import evaluation
from raydapt.run.finished import load_learned, open_run
from raydapt.run.guarding import Classifiers, stored_verdict
from raydapt.run.known_labels import KnownLabels, notes_of, read_known_labels
from raydapt.run.making import artefacts_of, make_artefacts
from raydapt.run.open_set import OpenSet, measured, open_set_of_run
from raydapt.run.origin import require_own_source
from raydapt.run.plan import FEATURES, Plan, make_plan
from raydapt.settings.config import Config
from raydapt.settings.tree import apply_override, as_tree
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import fingerprint
from raydapt.store.run_record import Run, safe_name
from raydapt.train.job import build_for_prediction, zero_shot_of
from raydapt.train.ray_train import local_context

_LOG = logging.getLogger(__name__)
_CHANGEABLE = ("data.", "features.", "ray.", "store", "runs", "train.predict_batch_size", "train.cache_gb")
"""What a run that is applied to other images may be given."""
_TRANSDUCTIVE = (
    "Transductive: images that the run was adapted to are among the measured ones; name others with data.test_splits."
)


def predict(run_folder: str, overrides: list[str], *, output: str | None = None) -> str:
    """Predicts all images of a source with an adapted run.

    Args:
        run_folder: A finished run.
        overrides: Settings on top of the run's, such as ``data.source=photos/``.
        output: Folder to write to; by default ``predictions/<source>`` in the run folder.

    Returns:
        The path of ``predictions.parquet``: id, path, split, label, zero_shot, predicted, and their confidences; of
        images that cannot be read ``error`` instead, with the reason.

    Raises:
        UserError: For a folder that is no run, or a source that cannot be read.
    """
    applied = _apply(run_folder, overrides, all_images=True)
    return _write(applied, _table(applied), output)


def predictions_of(run_folder: str, overrides: list[str]) -> pa.Table:
    """The table that `predict` writes, and no file."""
    return _table(_apply(run_folder, overrides, all_images=True))


def evaluate_on(run_folder: str, overrides: list[str]) -> str:
    """Measures as `measure` does, and returns the accuracies as JSON and where the predictions are."""
    metrics, path = measure(run_folder, overrides)
    return f"{json.dumps(metrics, indent=2)}\nPredictions: {path}"


def measure(run_folder: str, overrides: list[str]) -> tuple[dict[str, Any], str]:
    """Measures an adapted run on labelled images of its classes, by default the test images of its own set.

    Returns:
        The measured accuracies in percent (in TRZSL also of seen and unseen classes, with their harmonic mean), and
        whether images that were adapted to are among the measured ones (``transductive``); the same stands in
        ``metrics.json`` beside the predictions. And the path of these.

    Raises:
        UserError: As `predict`, and when no image has a label that is one of the classes.
    """
    applied = _apply(run_folder, overrides, all_images=False)
    found = applied.known.among(applied.row_T)
    if found.unknown_images < found.labelled:
        found.require_measurable(applied.plan.config.data.max_error_share)
    notes = [*notes_of(applied.plan, applied.table), *([found.sentence] if found.sentence else [])]
    notes += [_TRANSDUCTIVE] if applied.transductive else []
    class_T = applied.known.class_N[applied.row_T]
    n_classes = len(applied.plan.classes.names)
    before, after = evaluation.compare_predictions(
        applied.before, applied.after, class_T, n_classes, *_seen_and_unseen(applied)
    )
    if after.top1 is None:
        raise UserError(
            f"Setting data.source={applied.plan.config.data.source!r} has no image with a label among the classes of "
            f"the run{_strangers(found)}: use 'raydapt predict', or give data.class_names."
        )
    for note in notes:
        _LOG.warning(note)
    table = _table(applied)
    path = _write(applied, table, None)
    metrics = {
        "run": applied.run.name,
        "dataset": applied.plan.config.data.source,
        "images": after.images,
        "transductive": applied.transductive,
        "zero_shot": before.as_dict(),
        "adapted": after.as_dict(),
        "open_set": measured(table, applied.known, applied.row_T),
        "notes": notes,
    }
    applied.run.write_json(f"{_folder_name(applied.plan)}/metrics.json", metrics)
    return metrics, path


@dataclass(frozen=True, kw_only=True)
class _Applied:
    """A run's answers for a source."""

    run: Run
    plan: Plan
    table: FeatureTable
    known: KnownLabels
    row_T: torch.Tensor
    before: Predictions
    after: Predictions
    """The run's answer."""
    adapted: Predictions
    """The adapted model's, which the run's guard may not have kept."""
    open_set: OpenSet
    """The run's rule for images of none of the names."""
    all_images: bool
    """Whether images that cannot be read are rows, too."""
    learned: Config
    """The run's own settings."""
    transductive: bool
    """Whether images that were adapted to are among the rows."""


def _seen_and_unseen(applied: _Applied) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """The classes whose labels were learned from in TRZSL, and the others; none for other classes than the run's."""
    data, names = applied.learned.data, applied.plan.classes.names
    if data.paradigm != "trzsl" or list(names) != list(data.class_names):
        return None, None
    return seen_unseen_classes(len(names), data.split_seed, data.seen_share)


def _apply(run_folder: str, overrides: list[str], *, all_images: bool) -> _Applied:
    run, config = open_run(run_folder)
    require_own_source(run, config, overrides)
    wanted = overridden(run, config, overrides)
    plan = make_plan(wanted)
    artefacts = artefacts_of(make_artefacts(plan, to_learn=False))
    table, known = load_features(artefacts[FEATURES], plan.source), read_known_labels(plan, artefacts[FEATURES])
    row_T, own = table.valid_N.nonzero().flatten(), wanted.data.source == config.data.source
    if not len(row_T):
        raise UserError(f"Setting data.source={wanted.data.source!r} has no image that can be read: give another one.")
    row_N = rows_of_splits(config.data, table)[0] if own else row_T[:0]
    if not all_images:
        row_T = _test_rows(wanted, table, row_N)
    before, after, adapted = _answer(run, plan, artefacts, table, row_T)
    return _Applied(
        run=run,
        plan=plan,
        table=table,
        known=known,
        row_T=row_T,
        before=before,
        after=after,
        adapted=adapted,
        open_set=open_set_of_run(run, plan, table),
        all_images=all_images,
        learned=config,
        transductive=bool(torch.isin(row_T, row_N).any()),
    )


def _test_rows(config: Config, table: FeatureTable, row_N: torch.Tensor) -> torch.Tensor:
    """The images that are measured: those of the test splits, and those without a split.

    Args:
        config: With the source and the splits that were asked for.
        table: Its features.
        row_N: The images that were adapted to, if these are the run's own; measured where there are no test images.

    Raises:
        UserError: If there are none, or none that can be read.
    """
    require_readable_tests(config.data, table)
    wanted = (None, *config.data.test_splits)
    rows = [i for i in table.valid_N.nonzero().flatten().tolist() if table.split_N[i] in wanted]
    if rows or len(row_N):
        return torch.tensor(rows, dtype=torch.int64) if rows else row_N  # transductive, which `measure` says
    found = ", ".join(sorted({split for split in table.split_N if split is not None}))
    raise UserError(
        f"Setting data.test_splits={config.data.test_splits}: data.source={config.data.source!r} has no such image, "
        f"but the splits {found}: name those to be measured on."
    )


def overridden(run: Run, config: Config, overrides: list[str]) -> Config:
    """The settings of a run applied to other images.

    Raises:
        UserError: For a setting that belongs to the run.
    """
    tree: dict[str, Any] = as_tree(config)
    if any(item.startswith("data.source=") for item in overrides):
        tree["data"]["limit"] = None  # it counted the run's own images
    if any(item.startswith("data.class_names=") for item in overrides):
        tree["data"]["class_prior"] = "unknown"  # it was said of the run's own classes
    for item in overrides:
        apply_override(tree, item, kind=EverySetting)
        key = item.partition("=")[0]
        if not key.startswith(_CHANGEABLE):
            raise UserError(
                f"Setting {key} belongs to the run {run.name}, which was learned with it: only data.*, features.*, "
                "ray.*, store, runs, train.predict_batch_size and train.cache_gb can be changed here."
            )
    return config_from_tree(tree)


def _answer(
    run: Run, plan: Plan, artefacts: dict[str, Artefact], table: FeatureTable, row_T: torch.Tensor
) -> tuple[Predictions, Predictions, Predictions]:
    """The answers of zero-shot, of the run, and of the adapted model, of which the run's is one or the mean."""
    both = classifiers_of_run(run, plan, artefacts, table)
    before, adapted = both.answer("zero-shot", row_T), both.answer("adapted", row_T)
    verdict = stored_verdict(run)
    return before, adapted if verdict == "adapted" else both.answer(verdict, row_T), adapted


def classifiers_of_run(run: Run, plan: Plan, artefacts: Mapping[str, Artefact], table: FeatureTable) -> Classifiers:
    """Zero-shot and what a finished run has learned, over the images of a plan with the run's settings."""
    config, device = plan.config, local_context(plan.config.train).device
    plain = zero_shot_of(config, plan.classes, device)
    method = load_learned(build_for_prediction(config, plan.classes, device, artefacts), run, config)
    return Classifiers(
        zero_shot=Classifier(method=plain, image_N=table.feature_ND),
        adapted=Classifier(
            method=method, image_N=images_of(method.input_kind, table, artefacts, config.train.cache_gb)
        ),
        device=device,
        batch_size=config.train.predict_batch_size,
    )


def run_of_job(config: Config) -> str:
    """The folder that a run of these settings has."""
    return f"{config.runs.rstrip('/')}/{Run(config.runs, make_plan(config).run_name).name}"


def _table(applied: _Applied) -> pa.Table:
    answered = evaluation.predictions_table(
        applied.table,
        applied.known.label_N,
        applied.plan.classes,
        applied.row_T,
        applied.before,
        applied.after,
        applied.adapted,
    )
    answered = applied.open_set.with_columns(answered, applied.row_T)
    if not applied.all_images:
        return answered
    return evaluation.with_unreadable(answered, applied.table, applied.known.label_N, applied.plan.classes)


def _write(applied: _Applied, table: pa.Table, output: str | None) -> str:
    target = applied.run if output is None else Run.at(output)
    name = "predictions.parquet" if output is not None else f"{_folder_name(applied.plan)}/predictions.parquet"
    target.write_table(name, table)
    return target.file(name)


def _strangers(found: LabelFindings) -> str:
    """The labels that are no class, for a sentence; empty without labels."""
    return f" ({found.sentence.rstrip('.')})" if found.sentence else ""


def _folder_name(plan: Plan) -> str:
    """A folder of its own for every source and class list that a run is applied to."""
    short = safe_name(plan.config.data.source.rstrip("/").rsplit("/", 1)[-1], limit=40)
    inputs = [identity for identity in (plan.source.identity, plan.source.label_identity) if identity]
    return f"predictions/{short}-{fingerprint('applied', as_tree(plan.config.data), inputs)[:8]}"
