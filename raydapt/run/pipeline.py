"""The story of a run, from images and class names to a report.

    plan        source, classes, method: every setting decided, every artefact named
      -> artefacts   features of the frozen CLIP, and what else the method reads (Ray Data; kept in the store)
      -> data check  copies, blank and blurry images
      -> label split which images carry labels (UL: none)
      -> learn       rounds of pseudo-labels and optimiser steps (Ray Train, or this process)
      -> evaluate    predictions, metrics, gallery
      -> report      one page

Each step leaves its result behind and is passed over when it is there: running the same command again resumes.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from raydapt.artefacts.features import FeatureTable, load_features, rows_of_splits
from raydapt.artefacts.words import words_at
from raydapt.cluster.joining import ensure_ray, require_shared
from raydapt.data.splits import LabelSplit, divide
from raydapt.errors import UserError
from raydapt.methods.contract import Method
from raydapt.methods.guard import Guarded, Verdict
from raydapt.methods.predictions import Predictions
from raydapt.methods.spec import FinishedRun
from raydapt.methods.table import spec_of
from raydapt.models.frozen import load_frozen
from raydapt.progress import TrainingProgress
from raydapt.run import evaluation
from raydapt.run.accuracy import evaluate
from raydapt.run.data_check import DataCheck, look
from raydapt.run.gallery import gallery_table
from raydapt.run.guarding import Classifiers, classifiers_of, verdict_of
from raydapt.run.known_labels import KnownLabels, notes_of, read_known_labels
from raydapt.run.making import artefacts_of, make_artefacts, make_features
from raydapt.run.members import member_configs, with_members
from raydapt.run.open_set import OpenSet, find_open_set
from raydapt.run.plan import FEATURES, Plan, describe_plan, make_plan
from raydapt.run.stated_prior import prior_notes
from raydapt.run.status import PROGRESS, NotedProgress
from raydapt.run.tensorboard import write_events
from raydapt.run.tracking import TRACKED, Tracking, line_values, names_of, tracked
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree
from raydapt.stages.feature_files import Precision, write_features
from raydapt.store.artefact import Artefact, StageResult
from raydapt.store.environment import environment
from raydapt.store.run_record import Run
from raydapt.train.checkpoint import TrainState
from raydapt.train.job import CHECKPOINT, DIVISION, FileCheckpoints, TrainingJob, build_for_prediction, division_bytes
from raydapt.train.ray_train import local_context, train_on_workers, trains_here
from raydapt.train.rounds import is_guarded

_LOG = logging.getLogger(__name__)


def run(config: Config, *, overwrite: bool = False) -> Run:
    """Runs one job and returns its folder; resumes whatever an earlier run of the same settings left.

    Args:
        config: The settings, `auto` or not.
        overwrite: Learn and evaluate anew; artefacts in the store are reused all the same.

    Raises:
        UserError: For a mistake in the settings or the data.
    """
    names_of(config)
    config = with_members(config, run)
    plan = make_plan(config)
    record = Run(config.runs, plan.run_name)
    record.make()
    with record.lock():
        _claim(record, plan, overwrite=overwrite)
        if record.exists("metrics.json"):
            _LOG.info(f"{record.name} is finished already; --overwrite runs it again.")
        else:
            with tracked(plan.config, record) as tracking:
                _run(record, plan, tracking)
                _write_report(record)
        _write_report(record)
    return record


def _write_report(record: Run) -> None:
    if not record.exists("report.html"):
        from raydapt.run.reporting import write_run_report  # matplotlib imports for a second

        write_run_report(record.folder)


def in_words(record: Run) -> str:
    """What a finished run came to, and where its report is."""
    metrics = record.read_json("metrics.json")
    before, after = metrics["zero_shot"]["top1"], metrics["adapted"]["top1"]
    report, answer = f"Report: {record.folder.address('report.html')}", metrics.get("answer", "adapted")
    if after is None:
        return report
    return f"{metrics['name']}: zero-shot {before:.2f} %, {answer} {after:.2f} % (top-1)\n{report}"


def describe(config: Config) -> str:
    """The plan of a run in words: stages, inputs, what is already there. Computes nothing."""
    first = "".join(f"{describe_plan(make_plan(member))}\n\n" for member in member_configs(config))
    return first + describe_plan(make_plan(config))


def features(config: Config, *, output: str | None = None, precision: Precision = "float32") -> list[str]:
    """Computes the features of the source, or finds them.

    Args:
        config: The settings.
        output: Folder to write features and class embeddings to, as ``data.source`` and ``data.class_features`` take
            them; None: they stay in the store.
        precision: Of the written vectors.

    Returns:
        The artefact's folder, or both files.

    Raises:
        UserError: For a mistake in the settings or the data, or a folder that cannot be written.
    """
    plan = make_plan(config)
    artefact = make_features(plan).artefact
    if output is None:
        return [artefact.folder.path]
    clip = load_frozen(plan.config.data, plan.config.model)
    return list(write_features(artefact, plan.classes, clip, output, precision=precision))


def _run(record: Run, plan: Plan, tracking: Tracking) -> None:
    started = time.monotonic()
    stages = make_artefacts(plan)
    artefacts = artefacts_of(stages)
    table = load_features(artefacts[FEATURES], plan.source)
    row_N, row_T, transductive = rows_of_splits(plan.config.data, table)
    check = look(record, artefacts[FEATURES], table, row_N, row_T)
    open_set = find_open_set(plan, table, row_N, record)
    images = len(row_N)
    row_N, split = split_labels(record, plan, artefacts[FEATURES], row_N, open_set)
    job = TrainingJob(config=plan.config, classes=plan.classes, run=record, artefacts=artefacts)
    state = _train(job, tracking)
    known = read_known_labels(plan, artefacts[FEATURES])
    finished = finished_run(job, plan, state, table=table, row_N=row_N, row_T=row_T, known=known)
    told = _Told(open_set=open_set, check=check, left_out=images - len(row_N), transductive=transductive)
    metrics = _evaluate(job, finished, state, split, known, told)
    metrics |= plan.spec.outcome(finished)
    metrics["stages"] = {name: _stage_metrics(result) for name, result in stages.items()}
    metrics["errors"] = dict(artefacts[FEATURES].manifest.errors)
    metrics["seconds"] = time.monotonic() - started
    record.write_json("metrics.json", metrics)


def _claim(record: Run, plan: Plan, *, overwrite: bool) -> None:
    """Takes the folder for these settings, or refuses one that holds another run."""
    held = record.read_json("fingerprint.json")["fingerprint"] if record.exists("fingerprint.json") else None
    if held not in (None, plan.fingerprint) and not overwrite:
        raise UserError(
            f"Run folder {record.path!r} holds a run with other settings: give another name=…, or pass --overwrite."
        )
    if overwrite:
        for name in ("metrics.json", "report.html", CHECKPOINT, DIVISION, TRACKED):
            record.remove(name)
    record.write_text("config.yaml", yaml.safe_dump(as_tree(plan.config), sort_keys=False, allow_unicode=True))
    record.write_json("fingerprint.json", {"fingerprint": plan.fingerprint})
    record.write_json("environment.json", environment())


def split_labels(
    record: Run, plan: Plan, features: Artefact, row_N: torch.Tensor, open_set: OpenSet
) -> tuple[torch.Tensor, LabelSplit]:
    """Splits the training images; the labels of SSL and TRZSL are read here, those of UL are not.

    Returns:
        The rows that are learned from, without those that ``data.reject`` keeps out, and their split.
    """
    data, n_classes = plan.config.data, len(plan.classes.names)
    class_N = None
    if data.paradigm != "ul":
        class_N = read_known_labels(plan, features).taught(row_N).numpy()
    split = divide(
        data.paradigm,
        class_N,
        n_classes,
        shots=data.shots,
        seed=plan.config.seed,
        split_seed=data.split_seed,
        seen_share=data.seen_share,
        n_images=len(row_N),
    )
    kept_N, kept = open_set.kept(row_N, split)
    if class_N is not None and len(kept_N) < len(row_N):
        class_N = class_N[torch.isin(row_N, kept_N).numpy()]
    record.write_bytes(DIVISION, division_bytes(kept_N.numpy(), kept, class_N))
    return kept_N, kept


def _train(job: TrainingJob, tracking: Tracking) -> TrainState:
    """Learns, on Ray Train workers or in this process, and leaves the final state in the run folder."""
    settings, record, spec = job.config.train, job.run, spec_of(job.config.method)
    if not spec.learns:
        return TrainState(finished=True)
    checkpoints = FileCheckpoints(record)
    rounds = spec.rounds(job.config)
    progress = TrainingProgress(rounds=rounds, epochs=settings.epochs, show=job.config.ray.progress)
    noted = NotedProgress(record, rounds=rounds, epochs=settings.epochs)

    def log(line: Mapping[str, Any]) -> None:
        noted(line)
        progress(line)
        tracking.log(line_values(line), progress.epochs_of(line))

    if trains_here(settings, job.config.ray) or spec.fits_at_once:
        state = job(local_context(settings), checkpoints, log)
    else:
        ensure_ray(job.config.ray)
        require_shared(job.config.store, setting="store")
        require_shared(job.config.runs, setting="runs")
        fingerprint = record.read_json("fingerprint.json")["fingerprint"]
        storage = record.folder.child("ray_train")
        state = train_on_workers(job, settings, ray_settings=job.config.ray, storage=storage, name=fingerprint, log=log)
        checkpoints.save_state(state)
    progress.close()
    record.remove(PROGRESS)
    record.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in state.lines))
    if "tensorboard" in job.config.track:
        write_events(record, state.lines)
    return state


def finished_run(
    job: TrainingJob,
    plan: Plan,
    state: TrainState,
    *,
    table: FeatureTable | None = None,
    row_N: torch.Tensor,
    row_T: torch.Tensor,
    known: KnownLabels | None,
) -> FinishedRun:
    """The training that is over, with labels to measure it by; without them all images count as unlabelled."""
    device = local_context(job.config.train).device
    if table is None:  # gigabytes, where there are millions of images: never held twice
        table = load_features(job.artefacts[FEATURES], plan.source)
    return FinishedRun(
        config=job.config,
        classes=job.classes,
        source=plan.source,
        record=job.run,
        artefacts=job.artefacts,
        stored_spec=plan.stored_spec,
        clip=load_frozen(job.config.data, job.config.model, device=str(device)),
        method=final_method(job, state),
        state=state.method,
        table=table,
        class_A=torch.full((len(table.id_N),), -1) if known is None else known.class_N,
        row_N=row_N,
        row_T=row_T,
        device=device,
    )


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What was known of the images before anything was learned."""

    open_set: OpenSet
    check: DataCheck
    left_out: int
    transductive: bool


def _evaluate(
    job: TrainingJob,
    finished: FinishedRun,
    state: TrainState,
    split: LabelSplit,
    known: KnownLabels,
    told: _Told,
) -> dict[str, Any]:
    """Predicts the test images and writes everything about the outcome but metrics.json, which it returns."""
    config, names, record, table = finished.config, finished.classes.names, finished.record, finished.table
    both = classifiers_of(finished, job.zero_shot(finished.device))
    before, adapted = _both_answers(both, finished.row_T)
    seen, unseen = (split.seen or None), (split.unseen or None)
    row_N, row_T = finished.row_N, finished.row_T
    class_T, notes = known.measured(row_T)
    class_N, _ = known.measured(row_N)
    unlabelled_U = torch.from_numpy(split.unlabelled_U)
    earlier_round = state.kept_round is not None
    guarded, verdict, after = _guarded(both, finished, row_N[unlabelled_U], (before, adapted), earlier_round)
    notes = [*notes_of(known.plan, table), *notes, *prior_notes(finished)]
    notes += [*told.open_set.notes(len(row_N) + told.left_out, len(row_N)), *told.check.notes()]
    if guarded is not None and guarded.verdict != "adapted":
        notes = [guarded.sentence, *notes]
    notes = [*_of_round(state), *notes]
    for note in notes:
        _LOG.warning(note)
    accuracies = evaluation.compare_predictions(before, after, class_T, len(names), seen, unseen)
    predictions = evaluation.predictions_table(table, known.label_N, finished.classes, row_T, before, after, adapted)
    predictions = told.open_set.with_columns(predictions, row_T)
    record.write_table("predictions.parquet", predictions)
    if (confusion_CC := accuracies[1].confusion_CC) is not None:
        record.write_table("confusion.parquet", evaluation.confusion_table(confusion_CC, names))
    if state.history:
        id_N = words_at(table.id_N, row_N).to_pylist()
        record.write_table("pseudo_labels.parquet", evaluation.pseudo_labels_table(state.history, id_N, names))
    record.write_table("gallery.parquet", gallery_table(finished, predictions))
    rounds = evaluation.round_metrics(state.history, class_N, unlabelled_U)
    evaluation.add_scores(rounds, state.lines)
    scorer, spec = job.scorer(finished.method, device=finished.device), spec_of(config.method)
    return {
        "name": record.name,
        "method": config.method,
        "prompt": spec.prompt(config),
        "learned": spec.learned(config),
        "paradigm": config.data.paradigm,
        "dataset": config.data.source,
        "classes": len(names),
        "class_names": list(names),
        "unseen_classes": [names[i] for i in split.unseen],
        "seed": config.seed,
        "notes": notes,
        "labels": known.among(row_T).as_dict(),
        "zero_shot": accuracies[0].as_dict(),
        "adapted": accuracies[1].as_dict(),
        "answer": verdict,
        "guard": None if guarded is None else guarded.as_metrics(),
        "kept_round": state.kept_round,
        "open_set": told.open_set.metrics(predictions, known, row_T, left_out=told.left_out),
        "data_check": told.check.metrics(),
        "unguarded": evaluate(adapted.class_T, class_T, len(names), seen, unseen).as_dict(),
        "pseudo_labels": rounds[-1] if rounds else {"selected": 0, "accuracy": None},
        "label_free_score": after.mutual_information,
        "scores": None if scorer is None else scorer(finished.method),
        "zero_shot_scores": None if scorer is None else scorer(both.zero_shot.method),
        "rounds": rounds,
        "evaluation": evaluation.evaluation_metrics(
            *accuracies, names, images=len(row_T), transductive=told.transductive
        ),
        "train": evaluation.train_metrics(state, config.train),
    }


def _of_round(state: TrainState) -> list[str]:
    """A sentence where another round than the last one is kept."""
    if state.kept_round is None:
        return []
    return [
        f"Round {state.kept_round} of {state.round_} is kept, and answers together with zero-shot: evidence is against "
        "the rounds behind it."
    ]


def _guarded(
    both: Classifiers,
    finished: FinishedRun,
    row_U: torch.Tensor,
    answers: tuple[Predictions, Predictions],
    earlier_round: bool,
) -> tuple[Guarded | None, Verdict, Predictions]:
    """The guard's finding, what the run answers with, and that answer for the test images."""
    config, (before, adapted) = finished.config, answers
    guarded = both.judged(row_U, finished.table.feature_ND) if is_guarded(config) and len(row_U) > 1 else None
    verdict = verdict_of(config, guarded, earlier_round=earlier_round)
    if verdict == "mean of both" and adapted is not before:
        return guarded, verdict, both.answer(verdict, finished.row_T)
    return guarded, verdict, before if verdict == "zero-shot" else adapted


def final_method(job: TrainingJob, state: TrainState) -> Method:
    """The method with what it has learned, to predict with."""
    method = build_for_prediction(job.config, job.classes, local_context(job.config.train).device, job.artefacts)
    if state.method:
        method.load_state_dict(state.method)
    return method.eval()


def predict_tests(job: TrainingJob, finished: FinishedRun) -> tuple[Predictions, Predictions]:
    """Zero-shot and adapted answers for the test images."""
    return _both_answers(classifiers_of(finished, job.zero_shot(finished.device)), finished.row_T)


def _both_answers(both: Classifiers, row_T: torch.Tensor) -> tuple[Predictions, Predictions]:
    before = both.answer("zero-shot", row_T)
    same = type(both.adapted.method) is type(both.zero_shot.method)
    return before, before if same else both.answer("adapted", row_T)


def _stage_metrics(result: StageResult) -> dict[str, Any]:
    manifest = result.artefact.manifest
    return {**manifest.stats, "bytes": sum(shard.bytes for shard in manifest.shards), "reused": result.reused}
