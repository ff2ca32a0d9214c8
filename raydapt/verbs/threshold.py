"""The verb ``threshold``: which answers of a run are taken over, moved after the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydapt.review.calibration import UNREVIEWED, Calibration, choose_threshold, curve, fit, together
from raydapt.review.estimates import Estimator
from raydapt.review.population import Floats, Population
from raydapt.review.results import percent
from raydapt.review.session import REVIEW, Session, open_session
from raydapt.run.finished import open_run
from raydapt.run.prediction import predictions_of
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from raydapt.verbs.review_population import all_predictions_of_run, first_of_each, population_of

THRESHOLD = "threshold.json"
_CURVE_POINTS = 100
_RUN = -1  # the last answerer: the run itself, or zero-shot where that is the run


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A threshold and what it comes to.

    Attributes:
        told: What ``threshold.json`` holds; shares in percent.
        table: Every image, copies too, with its class, the probability that it is right, and whether it is taken.
        classes: The class names.
    """

    told: dict[str, Any]
    table: pa.Table
    classes: Sequence[str]


def threshold(
    run_folder: str,
    overrides: Sequence[str] = (),
    *,
    precision: float | None = 0.95,
    predicted: pa.Table | None = None,
) -> Chosen:
    """Chooses from which probability on a run's answers are taken over, and writes ``threshold.json`` beside the run.

    Probabilities come from the run's review; without one, from what zero-shot and the run say together, at the
    temperature of the development sets.

    Args:
        run_folder: A finished run.
        overrides: Settings of other images to predict, such as ``data.source=photos/``; by default the run's own
            predictions are taken.
        precision: The share of right ones that is wanted among those taken, 0 to 1; None takes every answer.
        predicted: The predictions of these other images, where they are at hand.

    Raises:
        UserError: For a folder that is no finished run, or images that cannot be predicted.
    """
    record, config = open_run(run_folder)
    population, calibration, session = _calibrated(record, config)
    if predicted is None and overrides:
        predicted = predictions_of(run_folder, list(overrides))
    everything = all_predictions_of_run(record) if predicted is None else predicted
    everything = everything.filter(pc.is_valid(everything["predicted"]))  # others cannot be read
    table = first_of_each(everything)
    target = population if predicted is None else population_of([(record, config)], table)
    named_N = _named(table)
    probability_N = np.where(named_N, calibration.probabilities(together(target, _RUN)), 0.0)
    least, kept, expected = _least(probability_N[named_N], precision)
    taken_N = named_N & (probability_N >= least)
    told = {
        "precision_wanted": None if precision is None else 100.0 * precision,
        "threshold": least if kept else None,
        "images": len(probability_N),
        "taken": kept,
        "expected_right": 100.0 * expected if kept else None,
        "from": f"a review of {calibration.answers} answers" if calibration.answers else "no review",
        "calibration": dict(vars(calibration)),
        "curve": _curve(probability_N),
    }
    if calibration.answers and session is not None and predicted is None and kept:
        estimator = Estimator(population, session.design)
        found = estimator.precision_among(session.told(), _RUN, taken_N)
        told["seen_right"] = None if found is None else percent(found)
    record.write_json(THRESHOLD, told)
    rows = _rows(everything, target, probability_N, taken_N)
    return Chosen(told=told, table=_with_people(rows, session), classes=population.classes)


def in_words(told: dict[str, Any]) -> str:
    """The choice as lines for a terminal."""
    if told["precision_wanted"] is None:
        sure = f", {told['expected_right']:.1f} % of them expected to be right" if told["taken"] else ""
        return f"Taken: {told['taken']:,} of {told['images']:,} images{sure}, going by {told['from']}."
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


def _calibrated(record: Run, config: Config) -> tuple[Population, Calibration, Session | None]:
    """The run's own predictions, the calibration, and the review, if there is one."""
    population = population_of([(record, config)])
    if not record.exists(REVIEW):
        return population, UNREVIEWED, None
    session = open_session(record, population, seed=0)
    return population, fit(Estimator(population, session.design), session.told(), _RUN), session


def _least(probability_N: Floats, precision: float | None) -> tuple[float, int, float]:
    """As `choose_threshold`; every answer where no precision is wanted."""
    if precision is not None:
        return choose_threshold(probability_N, precision)
    count = len(probability_N)
    return 0.0, count, float(probability_N.mean()) if count else 0.0


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
    """Every image of a table, copies too, with where it lies and what is known of its content."""
    at_of = {id_: at for at, id_ in enumerate(population.id_N)}
    index_R = np.array([at_of[id_] for id_ in table["id"].to_pylist()], dtype=np.int64)
    return {
        "id": table["id"].to_pylist(),
        "path": table["path"].to_pylist(),
        "class": [population.classes[c] for c in population.class_RN[_RUN][index_R].tolist()],
        "probability": probability_N[index_R].tolist(),
        "taken": taken_N[index_R].tolist(),
        "by": ["run"] * len(index_R),
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
