"""What is reviewed: the predictions of finished runs, or of the trials of a sweep, over the same images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.errors import UserError
from raydapt.review.population import Population
from raydapt.run.finished import open_folder
from raydapt.run.plan import make_plan
from raydapt.settings.config import Config
from raydapt.store.run_record import Run

ZERO_SHOT = "zero-shot"
SWEEP = "tune.json"


def population_of(runs: Sequence[tuple[Run, Config]], first: pa.Table | None = None) -> Population:
    """What zero-shot and the runs predicted, over the images of the first run, each distinct content once.

    Args:
        runs: Finished runs.
        first: The first run's predictions, where they are not those in its folder.

    Raises:
        UserError: For runs of other classes, or without a prediction of some image of the first.
    """
    classes = _classes(runs[0][0])
    tables = [predictions_of_run(run) for run, _ in runs]
    tables[0] = tables[0] if first is None else first_of_each(first)
    id_N = tables[0]["id"].to_pylist()
    names, columns = [ZERO_SHOT], [_answers(tables[0], "zero_shot", classes)]
    for (run, config), table in zip(runs, tables, strict=True):
        if _classes(run) != classes:
            raise UserError(
                f"Run {run.path!r} has other classes than {runs[0][0].path!r}: review runs of the same ones."
            )
        position = {id_: at for at, id_ in enumerate(table["id"].to_pylist())}
        if any(id_ not in position for id_ in id_N):
            raise UserError(
                f"Run {run.path!r} has no prediction for some images of {runs[0][0].path!r}: review runs of the same "
                "images."
            )
        if config.method != "zero_shot":
            names.append(run.name)
            columns.append(_answers(table.take([position[id_] for id_ in id_N]), "predicted", classes))
    class_RN, confidence_RN = (np.stack(parts) for parts in zip(*columns, strict=True))
    return Population(
        id_N=tuple(id_N), names=tuple(names), classes=classes, class_RN=class_RN, confidence_RN=confidence_RN
    )


def is_sweep(folder: str) -> bool:
    """Whether a folder holds a finished sweep."""
    return Run.at(folder).exists(SWEEP)


def answers_of_sweep(record: Run) -> list[tuple[str, pa.Table]]:
    """The finished trials of a sweep by name, each with its answers for the images that all of them were examined on.

    Raises:
        UserError: For a sweep that kept no answers.
    """
    from raydapt.tune.selection import UNADAPTED
    from raydapt.tune.trials import NAMED_ANSWERS

    finished = [trial["number"] for trial in record.read_json(SWEEP)["trials"] if trial["state"] == "finished"]
    numbers = [number for number in finished if number != UNADAPTED]  # whose answers stand beside each trial's
    trials = {number: Run(f"{record.folder.url}/trials", number) for number in numbers}
    if not all(trial.exists(NAMED_ANSWERS) for trial in trials.values()):
        raise UserError(f"Sweep {record.path!r} kept no answers of its trials (an earlier release): run it again.")
    read = {f"trial {n}": pq.read_table(pa.BufferReader(t.read_bytes(NAMED_ANSWERS))) for n, t in trials.items()}
    shared = set.intersection(*(set(table["id"].to_pylist()) for table in read.values()))
    chosen = {}
    for name, table in read.items():
        first = first_of_each(table)
        chosen[name] = first.take([at for at, id_ in enumerate(first["id"].to_pylist()) if id_ in shared])
    return list(chosen.items())


def population_of_sweep(record: Run) -> Population:
    """What zero-shot and the trials of a sweep say of the images that every trial was examined on.

    Raises:
        UserError: As `answers_of_sweep`.
    """
    tables = answers_of_sweep(record)
    classes = make_plan(open_folder(record.folder.url)[1]).classes.names
    columns = [_answers(tables[0][1], "zero_shot", classes)]
    columns += [_answers(table, "predicted", classes) for _, table in tables]
    class_RN, confidence_RN = (np.stack(parts) for parts in zip(*columns, strict=True))
    return Population(
        id_N=tuple(tables[0][1]["id"].to_pylist()),
        names=(ZERO_SHOT, *(name for name, _ in tables)),
        classes=tuple(classes),
        class_RN=class_RN,
        confidence_RN=confidence_RN,
    )


def write_chosen(record: Run, chosen: str) -> str:
    """Writes the trial that a review chose as ``chosen-by-review.yaml`` and returns the next command."""
    from raydapt.tune.selection import Trial
    from raydapt.tune.sweep import CHOSEN_BY_REVIEW, chosen_yaml

    if chosen == ZERO_SHOT:
        return "No trial is ahead of zero-shot: take 'raydapt run zero_shot'."
    config = open_folder(record.folder.url)[1]
    trials = (Trial(**entries) for entries in record.read_json(SWEEP)["trials"])
    trial = next(trial for trial in trials if f"trial {trial.number}" == chosen)
    record.write_text(CHOSEN_BY_REVIEW, chosen_yaml(config, trial, by="by a review"))
    return f"Run it: raydapt run {record.file(CHOSEN_BY_REVIEW)}"


def predictions_of_run(run: Run) -> pa.Table:
    """``predictions.parquet`` of a folder, the first row of every id; see `all_predictions_of_run`."""
    return first_of_each(all_predictions_of_run(run))


def all_predictions_of_run(run: Run) -> pa.Table:
    """``predictions.parquet`` of a folder, copies of an image too.

    Raises:
        UserError: If the folder has none.
    """
    if not run.exists("predictions.parquet"):
        raise UserError(f"Folder {run.path!r} has no predictions.parquet: run its command again with --overwrite.")
    return pq.read_table(pa.BufferReader(run.read_bytes("predictions.parquet")))


def _classes(run: Run) -> tuple[str, ...]:
    return tuple(run.read_json("metrics.json")["class_names"])


def first_of_each(table: pa.Table) -> pa.Table:
    """The first row of every id."""
    first: dict[str, int] = {}
    for at, id_ in enumerate(table["id"].to_pylist()):
        first.setdefault(id_, at)
    return table.take(list(first.values()))


def _answers(table: pa.Table, column: str, classes: tuple[str, ...]) -> tuple[Any, Any]:
    index_of = {name: c for c, name in enumerate(classes)}
    confidence = "confidence" if column == "predicted" else "zero_shot_confidence"
    class_N = np.array([index_of[name] for name in table[column].to_pylist()], dtype=np.int64)
    return class_N, table[confidence].to_numpy().astype(np.float64)
