"""The story of a run, from images and class names to a report.

    source + class names
      -> features of the frozen CLIP            (Ray Data, kept in the store, shared by all runs)
      -> pixels, if a visual prompt is learned  (the same)
      -> division: which images carry labels    (UL: none)
      -> rounds of pseudo-labels and learning   (Ray Train, or this process)
      -> predictions, metrics, gallery, report

Each step leaves its result behind and is passed over when it is there: running the same command again resumes.
"""

import json
import time
from typing import Any

import torch
import yaml

from raydapt.cluster.joining import ensure_ray, require_shared
from raydapt.data.splits import Division, divide
from raydapt.errors import UserError
from raydapt.methods.build import LEARNING_METHODS
from raydapt.methods.contract import Method
from raydapt.methods.coreg.outcome import coreg_metrics
from raydapt.methods.fair.method import Fair
from raydapt.methods.fair.outcome import write_alignment
from raydapt.methods.latteclip.outcome import write_latteclip
from raydapt.models.clip import load_clip
from raydapt.models.deployed import deployed, size_and_speed
from raydapt.progress import TrainingProgress, say
from raydapt.report.page import write_report
from raydapt.run import evaluation as outcome
from raydapt.run.gallery import gallery_table, synthetic_table
from raydapt.run.plan import Plan, describe_plan, make_plan, prompt_of, rows_of_splits
from raydapt.run.tensorboard import write_events
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree
from raydapt.stages.annotate import load_partial_labels
from raydapt.stages.artefacts import (
    FEATURES,
    PARTIAL_LABELS,
    artefacts_of,
    describe_synthesis,
    make_artefacts,
    make_features,
)
from raydapt.stages.features import FeatureTable, load_features, load_labels
from raydapt.stages.run import StageResult
from raydapt.stages.synthetic_images import SYNTHETIC
from raydapt.store.artefact import Artefact
from raydapt.store.environment import environment
from raydapt.store.run_record import Run
from raydapt.train.checkpoint import TrainState
from raydapt.train.job import (
    CHECKPOINT,
    DIVISION,
    FileCheckpoints,
    TrainingJob,
    build_for_prediction,
    division_bytes,
    images_of,
    synthetic_of,
)
from raydapt.train.ray_train import local_place, train_on_workers


def run(config: Config, *, overwrite: bool = False) -> Run:
    """Runs one job and returns its folder; resumes whatever an earlier run of the same settings left.

    Args:
        config: The settings, `auto` or not.
        overwrite: Learn and evaluate anew; artefacts in the store are reused all the same.

    Raises:
        UserError: For a mistake in the settings or the data.
    """
    plan = make_plan(config)
    record = Run(config.runs, plan.run_name)
    record.make()
    with record.lock():
        _claim(record, plan, overwrite=overwrite)
        if record.exists("metrics.json"):
            say(f"{record.name} is finished already; --overwrite runs it again.")
        else:
            _run(record, plan)
        if not record.exists("report.html"):
            write_report(record.folder)
    return record


def describe(config: Config) -> str:
    """The plan of a run in words: stages, inputs, what is already there. Computes nothing."""
    plan = make_plan(config)
    return describe_plan(plan, describe_synthesis(plan))


def features(config: Config) -> str:
    """Computes the features of the source (or finds them) and returns the artefact's folder."""
    return make_features(make_plan(config)).artefact.folder.path


def synthesize(config: Config) -> str:
    """Makes the synthetic images of the settings (or finds them) and returns the artefact's folder."""
    from raydapt.stages.synthetic import make_synthetic  # diffusers takes seconds to import

    plan = make_plan(config)
    return make_synthetic(plan, make_features(plan).artefact).artefact.folder.path


def _run(record: Run, plan: Plan) -> None:
    started = time.monotonic()
    stages = make_artefacts(plan)
    artefacts = artefacts_of(stages)
    table = load_features(artefacts[FEATURES])
    row_N, row_T, transductive = rows_of_splits(plan.config.data, table)
    division = divide_images(record, plan, artefacts[FEATURES], row_N)
    job = TrainingJob(config=plan.config, classes=plan.classes, run=record, artefacts=artefacts)
    state = _train(job)
    method = final_method(job, state)
    metrics = _evaluate(job, plan, state, method, table, division, row_N=row_N, row_T=row_T, transductive=transductive)
    if SYNTHETIC in artefacts:
        metrics["synthetic"] = _show_synthetic(job, plan)
    metrics["stages"] = {name: _stage_metrics(result) for name, result in stages.items()}
    metrics["errors"] = dict(artefacts[FEATURES].manifest.errors)
    metrics["seconds"] = time.monotonic() - started
    if plan.config.method == "fair":
        metrics["alignment"] = _alignment(job, plan, method, table, row_N)
    if plan.config.method == "latteclip":
        metrics["latteclip"] = write_latteclip(job, plan, state, table, row_N)
    record.write_json("metrics.json", metrics)


def _claim(record: Run, plan: Plan, *, overwrite: bool) -> None:
    """Takes the folder for these settings, or refuses one that holds another run."""
    held = record.read_json("fingerprint.json")["fingerprint"] if record.exists("fingerprint.json") else None
    if held not in (None, plan.fingerprint) and not overwrite:
        raise UserError(
            f"Run folder {record.path!r} holds a run with other settings: give another name=…, or pass --overwrite."
        )
    if overwrite:
        for name in ("metrics.json", "report.html", CHECKPOINT, DIVISION):
            record.remove(name)
    record.write_text("config.yaml", yaml.safe_dump(as_tree(plan.config), sort_keys=False, allow_unicode=True))
    record.write_json("fingerprint.json", {"fingerprint": plan.fingerprint})
    record.write_json("environment.json", environment())


def divide_images(record: Run, plan: Plan, features: Artefact, row_N: torch.Tensor) -> Division:
    """Divides the training images; the labels of SSL and TRZSL are read here, those of UL are not."""
    data, n_classes = plan.config.data, len(plan.classes.names)
    class_N = None
    if data.paradigm != "ul":
        labels = load_labels(features)
        class_N = plan.classes.indices_of([labels[row] for row in row_N.tolist()])
    division = divide(
        data.paradigm,
        class_N,
        n_classes,
        shots=data.shots,
        seed=plan.config.seed,
        split_seed=data.split_seed,
        seen_share=data.seen_share,
        n_images=len(row_N),
    )
    record.write_bytes(DIVISION, division_bytes(row_N.numpy(), division, class_N))
    return division


def _train(job: TrainingJob) -> TrainState:
    """Learns, on Ray Train workers or in this process, and leaves the final state in the run folder."""
    settings, record = job.config.train, job.run
    if job.config.method not in LEARNING_METHODS:
        return TrainState(finished=True)
    checkpoints = FileCheckpoints(record)
    progress = TrainingProgress(rounds=rounds_of(job.config), epochs=settings.epochs, show=job.config.ray.progress)
    if settings.workers == 0:
        state = job(local_place(settings), checkpoints, progress)
    else:
        ensure_ray(job.config.ray)
        require_shared(job.config.store, setting="store")
        require_shared(job.config.runs, setting="runs")
        fingerprint = record.read_json("fingerprint.json")["fingerprint"]
        storage = record.folder.child("ray_train")
        state = train_on_workers(
            job, settings, ray_settings=job.config.ray, storage=storage, name=fingerprint, log=progress
        )
        checkpoints.save_state(state)
    progress.close()
    record.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in state.lines))
    write_events(record, state.lines)
    return state


def _evaluate(
    job: TrainingJob,
    plan: Plan,
    state: TrainState,
    method: Method,
    table: FeatureTable,
    division: Division,
    *,
    row_N: torch.Tensor,
    row_T: torch.Tensor,
    transductive: bool,
) -> dict[str, Any]:
    """Predicts the test images and writes everything about the outcome but metrics.json, which it returns."""
    config, names, record = plan.config, plan.classes.names, job.run
    before, after = guess_tests(job, method, table, row_T)
    labels = load_labels(job.artefacts[FEATURES])
    class_all = torch.from_numpy(plan.classes.indices_of(labels))
    seen, unseen = (division.seen or None), (division.unseen or None)
    n_classes = len(names)
    accuracy_before, accuracy_after = outcome.compare_guesses(before, after, class_all[row_T], n_classes, seen, unseen)
    predictions = outcome.predictions_table(table, labels, plan.classes, row_T, before, after)
    id_N = [table.id_N[row] for row in row_N.tolist()]
    record.write_bytes("predictions.parquet", outcome.parquet_bytes(predictions))
    if state.history:
        given = outcome.pseudo_labels_table(state.history, id_N, names)
        record.write_bytes("pseudo_labels.parquet", outcome.parquet_bytes(given))
    record.write_bytes("gallery.parquet", outcome.parquet_bytes(gallery_table(plan, table, row_T, predictions)))
    unlabelled_U = torch.from_numpy(division.unlabelled_U)
    rounds = outcome.round_metrics(state.history, class_all[row_N], unlabelled_U)
    outcome.add_scores(rounds, state.lines)
    examiner = job.examiner(method, device=local_place(config.train).device)
    own = _coreg_metrics(job, state, table, class_all, row_N, row_T) if config.method == "coreg" else {}
    return own | {
        "name": record.name,
        "method": config.method,
        "prompt": prompt_of(config),
        "paradigm": config.data.paradigm,
        "dataset": config.data.source,
        "classes": n_classes,
        "class_names": list(names),
        "unseen_classes": [names[i] for i in division.unseen],
        "seed": config.seed,
        "zero_shot": accuracy_before.as_dict(),
        "adapted": accuracy_after.as_dict(),
        "pseudo_labels": rounds[-1] if rounds else {"selected": 0, "accuracy": None},
        "label_free_score": after.mutual_information,
        "scores": None if examiner is None else examiner(method),
        "rounds": rounds,
        "evaluation": outcome.evaluation_metrics(
            accuracy_before, accuracy_after, names, images=len(row_T), transductive=transductive
        ),
        "train": outcome.train_metrics(state, config.train),
    }


def _coreg_metrics(
    job: TrainingJob,
    state: TrainState,
    table: FeatureTable,
    class_all: torch.Tensor,
    row_N: torch.Tensor,
    row_T: torch.Tensor,
) -> dict[str, Any]:
    """Annotation, division, students, and the size and speed of what is deployed beside CLIP's image tower."""
    device, config = local_place(job.config.train).device, job.config
    partial = load_partial_labels(job.artefacts[PARTIAL_LABELS])
    rows = torch.arange(len(class_all))
    zero_shot = outcome.guess(job.zero_shot(device), table.feature_ND, rows, batch_size=1024, device=device)
    metrics = coreg_metrics(state.method, partial, zero_shot.class_T, class_all, row_N=row_N, row_T=row_T)
    clip = load_clip(config.model.clip, device=device)
    student, tower = build_for_prediction(config, job.classes, device), job.zero_shot(device)
    metrics["deployment"] = {
        "student": size_and_speed(deployed(student, clip), config.coreg.image_size_px, device),
        "clip_image_tower": size_and_speed(deployed(tower, clip), clip.image_spec.size_px, device),
        "clip_parameters": sum(p.numel() for p in clip.model.parameters()),
    }
    return {"coreg": metrics}


def _show_synthetic(job: TrainingJob, plan: Plan) -> dict[str, Any]:
    """Writes the synthetic gallery and returns how many of the images zero-shot accepts."""
    record, names = job.run, plan.classes.names
    gallery_rows = synthetic_table(job.artefacts[SYNTHETIC], plan)
    record.write_bytes("synthetic.parquet", outcome.parquet_bytes(gallery_rows))
    synthetic = synthetic_of(plan.config, plan.classes, job.artefacts)
    assert synthetic is not None  # there is an artefact of them
    class_CD = load_clip(plan.config.model.clip).class_embeddings(names, plan.classes.templates[:1])
    return outcome.synthetic_metrics(synthetic, class_CD, names, top=plan.config.air.cleaning_top or 5)


def final_method(job: TrainingJob, state: TrainState) -> Method:
    """The method with what it has learned, to predict with."""
    method = build_for_prediction(job.config, job.classes, local_place(job.config.train).device, job.artefacts)
    if state.method:
        method.load_state_dict(state.method)
    return method


def guess_tests(
    job: TrainingJob, method: Method, table: FeatureTable, row_T: torch.Tensor
) -> tuple[outcome.Guesses, outcome.Guesses]:
    """Zero-shot and adapted answers for the test images."""
    place, batch_size = local_place(job.config.train), job.config.train.predict_batch_size
    zero_shot = job.zero_shot(place.device)
    before = outcome.guess(zero_shot, table.feature_ND, row_T, batch_size=batch_size, device=place.device)
    if job.config.method == "zero_shot":
        return before, before
    images = images_of(method.reads, table, job.artefacts)
    return before, outcome.guess(method, images, row_T, batch_size=batch_size, device=place.device)


def _alignment(
    job: TrainingJob, plan: Plan, method: Method, table: FeatureTable, row_N: torch.Tensor
) -> dict[str, Any]:
    """What FAIR's report tells of crops, weights and anchors."""
    if not isinstance(method, Fair):
        raise TypeError("only fair has anchors")
    class_N = torch.from_numpy(plan.classes.indices_of(load_labels(job.artefacts[FEATURES])))
    return write_alignment(job, plan, method.eval(), table, row_N, class_N)


def _stage_metrics(result: StageResult) -> dict[str, Any]:
    manifest = result.artefact.manifest
    return {**manifest.stats, "bytes": sum(shard.bytes for shard in manifest.shards), "reused": result.reused}


def rounds_of(config: Config) -> int:
    """Rounds of learning, at most, of a job."""
    if config.method == "air" and config.air.synthetic_only:
        return 1
    base = config.air.base if config.method == "air" else config.method
    return {"grip": config.grip.rounds, "cpl": config.cpl.rounds}.get(base, 1)
