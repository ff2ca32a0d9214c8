"""The verb ``threshold``: which answers of a run are taken over, moved after the run, and the files to go on with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydapt.errors import UserError
from raydapt.review.calibration import Calibration, choose_threshold, curve, fit, together
from raydapt.review.estimates import Estimator
from raydapt.review.population import Floats, Population
from raydapt.review.results import percent
from raydapt.review.session import REVIEW, Session, open_session
from raydapt.run.finished import open_run
from raydapt.run.labelled_set import as_csv, as_label_studio, rest_of, write_folder
from raydapt.run.prediction import overridden, predictions_of
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from raydapt.verbs.review import image_rows
from raydapt.verbs.review_population import first_of_each, population_of, predictions_of_run

THRESHOLD = "threshold.json"
_CURVE_POINTS = 100
_RUN = -1  # the last answerer: the run itself, or zero-shot where that is the run


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A threshold and what it comes to.

    Attributes:
        told: What ``threshold.json`` holds; shares in percent.
        table: Every image with its class, the probability that it is right, and whether it is taken.
        classes: The class names.
    """

    told: dict[str, Any]
    table: pa.Table
    classes: Sequence[str]


def threshold(run_folder: str, overrides: Sequence[str] = (), *, precision: float = 0.95) -> Chosen:
    """Chooses from which probability on a run's answers are taken over, and writes ``threshold.json`` beside the run.

    Probabilities come from the run's review; without one, from what zero-shot and the run say together, unchecked.

    Args:
        run_folder: A finished run.
        overrides: Settings of other images to predict, such as ``data.source=photos/``; by default the run's own
            predictions are taken.
        precision: The share of right ones that is wanted among those taken, 0 to 1.

    Raises:
        UserError: For a folder that is no finished run, or images that cannot be predicted.
    """
    record, config = open_run(run_folder)
    population, calibration, session = _calibrated(record, config)
    table = first_of_each(predictions_of(run_folder, list(overrides)) if overrides else predictions_of_run(record))
    target = population_of([(record, config)], table) if overrides else population
    named_N = _named(table)
    probability_N = np.where(named_N, calibration.probabilities(together(target, _RUN)), 0.0)
    least, kept, expected = choose_threshold(probability_N[named_N], precision)
    taken_N = named_N & (probability_N >= least)
    told = {
        "precision_wanted": 100.0 * precision,
        "threshold": least if kept else None,
        "images": len(probability_N),
        "taken": kept,
        "expected_right": 100.0 * expected if kept else None,
        "from": f"a review of {calibration.answers} answers" if calibration.answers else "no review",
        "calibration": dict(vars(calibration)),
        "curve": _curve(probability_N),
    }
    if calibration.answers and session is not None and not overrides and kept:
        estimator = Estimator(population, session.design)
        found = estimator.precision_among(session.told(), _RUN, taken_N)
        told["seen_right"] = None if found is None else percent(found)
    record.write_json(THRESHOLD, told)
    rows = _rows(table, target, probability_N, taken_N)
    return Chosen(told=told, table=_with_people(rows, session), classes=population.classes)


def in_words(told: dict[str, Any]) -> str:
    """The choice as lines for a terminal."""
    if not told["taken"]:
        return f"No answer is sure enough for {told['precision_wanted']:g} % right, going by {told['from']}."
    lines = [
        f"Taken: {told['taken']:,} of {told['images']:,} images, probability {told['threshold']:.3f} or more, "
        f"{told['expected_right']:.1f} % of them expected to be right, going by {told['from']}."
    ]
    seen = told.get("seen_right")
    if seen:
        interval = f"{seen['low']:.1f} to {seen['high']:.1f}"
        lines.append(f"Going by the answered ones among them alone: {seen['value']:.1f} % ({interval}).")
    if not told["calibration"]["answers"]:
        lines.append("Nobody has checked these probabilities: let a person answer some images with 'raydapt review'.")
    return "\n".join(lines)


def write_files(
    run_folder: str,
    overrides: Sequence[str],
    chosen: Chosen,
    *,
    folder: str | None = None,
    copy: bool = False,
    csv: str | None = None,
    label_studio: str | None = None,
) -> list[str]:
    """Writes what is wanted and returns the places.

    Args:
        run_folder: The run.
        overrides: As `threshold` was given.
        chosen: What it returned.
        folder: For the taken images, one folder a class.
        copy: Copy image files instead of linking them.
        csv: Folder for ``labels.csv`` and ``rest.csv``.
        label_studio: Folder for ``tasks.json`` (the images that are not taken) and ``interface.xml``.

    Raises:
        UserError: For features without images where a folder is wanted, or places that cannot be written.
    """
    places = []
    if folder is not None:
        record, config = open_run(run_folder)
        config = overridden(record, config, list(overrides))
        plan, row_of = image_rows(record, config, chosen.table["id"].to_pylist())
        if plan.source.width:
            raise UserError("Option --folder needs images, and this run has features in their place: use --csv.")
        count = write_folder(chosen.table, Path(folder), plan.source, plan.config.data, row_of, copy=copy)
        places.append(f"{folder}: {count:,} images")
    if csv is not None:
        record = Run.at(csv)
        record.write_bytes("labels.csv", as_csv(chosen.table))
        record.write_bytes("rest.csv", as_csv(rest_of(chosen.table)))
        places += [record.file("labels.csv"), record.file("rest.csv")]
    if label_studio is not None:
        record = Run.at(label_studio)
        tasks, interface = as_label_studio(rest_of(chosen.table), chosen.classes, Run.at(run_folder).name)
        record.write_bytes("tasks.json", tasks)
        record.write_bytes("interface.xml", interface)
        places += [record.file("tasks.json"), record.file("interface.xml")]
    return places


def _calibrated(record: Run, config: Config) -> tuple[Population, Calibration, Session | None]:
    """The run's own predictions, the calibration, and the review, if there is one."""
    population = population_of([(record, config)])
    if not record.exists(REVIEW):
        return population, Calibration(slope=1.0, offset=0.0, ceiling=1.0, answers=0), None
    session = open_session(record, population, seed=0)
    return population, fit(Estimator(population, session.design), session.told(), _RUN), session


def _named(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Which images the run gives a class; the others it answers "none of these", and none of them is taken."""
    if "predicted_or_none" not in table.column_names:  # a run of an earlier release
        return np.ones(table.num_rows, dtype=bool)
    same: npt.NDArray[np.bool_] = pc.equal(table["predicted_or_none"], table["predicted"]).to_numpy()
    return same


def _curve(probability_N: Floats) -> list[dict[str, float]]:
    """Share of the images taken, and share of those expected right, in percent, at some lengths."""
    _, precision_N = curve(probability_N)
    at_P = np.unique(np.linspace(0, len(precision_N) - 1, _CURVE_POINTS).astype(int))
    return [{"taken": 100.0 * (at + 1) / len(precision_N), "right": 100.0 * float(precision_N[at])} for at in at_P]


def _rows(table: pa.Table, population: Population, probability_N: Floats, taken_N: Any) -> dict[str, list[Any]]:
    """The images of the population in their order, with where they lie and what the run says."""
    return {
        "id": list(population.id_N),
        "path": table["path"].to_pylist(),
        "class": [population.classes[c] for c in population.class_RN[_RUN].tolist()],
        "probability": probability_N.tolist(),
        "taken": taken_N.tolist(),
        "by": ["run"] * len(probability_N),
    }


def _with_people(rows: dict[str, list[Any]], session: Session | None) -> pa.Table:
    """The rows, those that a person has named with that name; what is of no class is not taken."""
    answers = {} if session is None else {a.id: a for a in reversed(session.answers) if a.kind != "cannot tell"}
    for at, id_ in enumerate(rows["id"]):
        answer = answers.get(id_)
        if answer is not None:
            rows["by"][at], rows["taken"][at] = "person", answer.kind == "class"
            rows["class"][at] = answer.name or rows["class"][at]
            rows["probability"][at] = 1.0 if answer.kind == "class" else 0.0
    return pa.table(rows)
