"""One trial: a job with some settings of its own, learned and scored without labels. Ray Tune stays outside.

A trial's folder, ``trials/<number>`` of the sweep, holds its checkpoint while it runs and ``trial.json`` once it is
over, so that whoever asks for the same trial again goes on, or finds it done. ``answers.safetensors`` has the classes
that it gives the examined images, for the consensus of all trials; ``answers.parquet`` has them with ids, confidences
and zero-shot's answers, for a person who chooses among the trials (`raydapt review SWEEP --choose`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from ray.train import UserCallback
from safetensors.torch import load, save

from raydapt.artefacts.features import load_features, rows_of_splits
from raydapt.errors import UserError
from raydapt.methods.spec import FinishedRun
from raydapt.methods.table import spec_of
from raydapt.run import pipeline
from raydapt.run.accuracy import evaluate
from raydapt.run.guarding import classifiers_of
from raydapt.run.known_labels import read_known_labels
from raydapt.run.making import artefacts_of, make_artefacts
from raydapt.run.open_set import find_open_set
from raydapt.run.plan import FEATURES, make_plan
from raydapt.run.status import NotedProgress
from raydapt.settings.config import Config
from raydapt.store.artefact import Artefact
from raydapt.store.run_record import Run
from raydapt.train.checkpoint import TrainState
from raydapt.train.job import FileCheckpoints, TrainingJob
from raydapt.train.ray_train import local_context, train_on_workers
from raydapt.tune.search_space import trial_config
from raydapt.tune.selection import UNADAPTED, Trial

TRIAL, ANSWERS, NAMED_ANSWERS = "trial.json", "answers.safetensors", "answers.parquet"
Report = Callable[[dict[str, float]], None]
"""Tells Ray Tune the scores so far; a scheduler may end the trial there."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What all trials of a sweep share, small enough to be sent to every actor."""

    config: Config
    folder: str
    """Of the sweep."""
    held_out: Mapping[str, Artefact]
    """Synthetic images for the scores; empty without."""
    first_held_out: int
    """Number of the first of them in its class: no trial learns from that many images or more."""

    @property
    def run(self) -> Run:
        """The folder of the sweep."""
        return Run.at(self.folder)

    def record(self, number: str) -> Run:
        """The folder of a trial."""
        return Run(f"{self.folder}/trials", number)


def run_trial(
    sweep: Sweep, number: str, settings: Mapping[str, Any], report: Report, callbacks: Sequence[UserCallback] = ()
) -> None:
    """Carries out one trial, or what is left of it, and leaves ``trial.json``.

    Args:
        sweep: The sweep.
        number: Names the trial.
        settings: What is its own.
        report: Called with the label-free scores whenever there are some, at the end with the final ones.
        callbacks: Of Ray Train, where trials have workers.

    Raises:
        UserError: For a trial that cannot work; it is recorded as failed, like any other error.
    """
    record = sweep.record(number)
    if record.exists(TRIAL) and (there := read_trial(record)).state == "finished":
        return report(_numbers(there.scores))
    started = time.perf_counter()
    told = {"number": number, "settings": dict(settings)}
    try:
        result = _carry_out(sweep, record, settings, report, callbacks)
    except Exception as error:  # whatever it is, the other trials go on, and the report says what it was
        failed = {"state": "failed", "error": _sentence(error), "scores": {}, "seconds": time.perf_counter() - started}
        record.write_json(TRIAL, told | failed)
        raise
    record.write_json(TRIAL, told | {"state": "finished", **result, "seconds": time.perf_counter() - started})
    return report(_numbers(result["scores"]))


def unadapted_trial(sweep: Sweep) -> Trial:
    """The model as it is, scored like the others; see `raydapt.tune.selection.UNADAPTED`.

    Raises:
        UserError: As `run_trial`.
    """
    run_trial(sweep, UNADAPTED, {"method": "zero_shot"}, lambda _: None)
    return read_trial(sweep.record(UNADAPTED))


def read_trial(record: Run) -> Trial:
    """A trial that is over, from its folder."""
    entries = record.read_json(TRIAL)
    return Trial(
        number=entries["number"],
        settings=entries["settings"],
        state=entries["state"],
        scores=entries["scores"],
        seconds=entries["seconds"],
        error=entries.get("error"),
        accuracy=entries.get("accuracy"),
        zero_shot=entries.get("zero_shot"),
    )


def answers_of(record: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a finished trial: the examined images, int64 [E] ascending, and the classes int64 [E] that it gives them."""
    answers = load(record.read_bytes(ANSWERS))
    return answers["index_E"], answers["class_E"]


def _carry_out(
    sweep: Sweep, record: Run, settings: Mapping[str, Any], report: Report, callbacks: Sequence[UserCallback]
) -> dict[str, Any]:
    config = trial_config(sweep.config, settings)
    count = config.synthesis.held_out
    # The sweep has made what is held out, behind the images of the trial that takes most: not here.
    plan = make_plan(replace(config, synthesis=replace(config.synthesis, held_out=0)))
    artefacts = artefacts_of(make_artefacts(plan))
    table = load_features(artefacts[FEATURES], plan.source)
    row_N, row_T, _ = rows_of_splits(plan.config.data, table)
    open_set = find_open_set(plan, table, row_N, record)
    row_N, split = pipeline.split_labels(record, plan, artefacts[FEATURES], row_N, open_set)
    job = TrainingJob(
        config=replace(plan.config, synthesis=replace(plan.config.synthesis, held_out=count)),
        classes=plan.classes,
        run=record,
        artefacts=artefacts | dict(sweep.held_out),
        score_every_epoch=config.tune.scheduler != "none" and plan.spec.rounds(plan.config) == 1,
        first_held_out=sweep.first_held_out,
    )
    state = _train(job, report, callbacks)
    oracle = config.tune.oracle
    known = read_known_labels(plan, artefacts[FEATURES]) if oracle else None
    finished = pipeline.finished_run(job, plan, state, row_N=row_N, row_T=row_T, known=known)
    method = finished.method
    scorer = job.scorer(method, device=local_context(config.train).device)
    if scorer is None:
        raise UserError(f"Setting data.source={config.data.source!r} has too few images to score: give more.")
    scores, class_E = scorer.examine(method)
    record.write_bytes(ANSWERS, save({"index_E": scorer.index_E, "class_E": class_E}))
    record.write_table(NAMED_ANSWERS, _named_answers(job, finished, row_N[scorer.index_E]))
    result: dict[str, Any] = {"scores": scores, "log": [line for line in state.lines if "scores" in line]}
    if oracle:
        result |= _look_at_labels(job, finished, (split.seen or None, split.unseen or None))
    return result


def _named_answers(job: TrainingJob, finished: FinishedRun, row_E: torch.Tensor) -> pa.Table:
    """The examined images with the answers of zero-shot and of the trial, in the columns of ``predictions.parquet``."""
    both, names = classifiers_of(finished, job.zero_shot(finished.device)), finished.classes.names
    before, after = both.answer("zero-shot", row_E), both.answer("adapted", row_E)
    rows = row_E.tolist()
    return pa.table(
        {
            "id": [finished.table.id_N[row] for row in rows],
            "path": [finished.table.path_N[row] for row in rows],
            "zero_shot": [names[c] for c in before.class_T.tolist()],
            "zero_shot_confidence": before.confidence_T.cpu().numpy(),
            "predicted": [names[c] for c in after.class_T.tolist()],
            "confidence": after.confidence_T.cpu().numpy(),
        }
    )


def _train(job: TrainingJob, report: Report, callbacks: Sequence[UserCallback]) -> TrainState:
    settings = job.config.train
    if not spec_of(job.config.method).learns:
        return TrainState(finished=True)

    noted = NotedProgress(job.run, rounds=spec_of(job.config.method).rounds(job.config), epochs=settings.epochs)

    def log(line: Mapping[str, Any]) -> None:
        noted(line)
        if "scores" in line:
            report(_numbers(line["scores"]))

    if settings.workers == 0:
        return job(local_context(settings), FileCheckpoints(job.run), log)
    return train_on_workers(
        job,
        settings,
        ray_settings=job.config.ray,
        storage=job.run.folder.child("ray_train"),
        name="trial",
        log=noted,
        callbacks=callbacks,
    )


def _look_at_labels(
    job: TrainingJob, finished: FinishedRun, parts: tuple[Sequence[int] | None, Sequence[int] | None]
) -> dict[str, float | None]:
    """Accuracies on the test images: of a study alone, and nothing but the study reads them."""
    class_T = finished.class_A[finished.row_T]
    figures = {}
    answers = pipeline.predict_tests(job, finished)
    for name, predictions in zip(("zero_shot", "accuracy"), answers, strict=True):
        figure = evaluate(predictions.class_T, class_T, len(finished.classes.names), *parts)
        figures[name] = figure.harmonic_mean if job.config.data.paradigm == "trzsl" else figure.top1
    return figures


def _numbers(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: score for name, score in scores.items() if score is not None}


def _sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"[:500]
