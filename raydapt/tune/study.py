"""Several studies side by side: how well each score ranks trials, and what the choice without labels costs."""

from collections.abc import Sequence
from typing import Any

from raydapt.errors import UserError
from raydapt.store.folder import Folder
from raydapt.train.scoring import SCORES
from raydapt.tune.selection import COMBINED, CONSENSUS, Trial, available, ranking, study_of

_SHORT = {
    "synthetic_accuracy": "synth",
    "agreement": "agree",
    "cluster_agreement": "cluster",
    "class_balance": "even",
    "prior_match": "prior",
    "mutual_information": "MI",
    "neighbourhood_density": "SND",
    "calibrated_accuracy": "calib",
    "stability": "stable",
    CONSENSUS: "consensus",
    COMBINED: "combined",
}


def summary(sweep_folders: Sequence[str]) -> str:
    """A Markdown table of studies with the means in the last line.

    Args:
        sweep_folders: Folders of sweeps that ran with ``tune.oracle=true``.

    Raises:
        UserError: For a folder that is none.
    """
    return format_studies([_read(folder) for folder in sweep_folders])


def format_studies(results: Sequence[dict[str, Any]]) -> str:
    """The table of the contents of several ``tune.json``."""
    names = [
        name
        for name in (*SCORES, CONSENSUS, COMBINED)
        if any(name in result["study"]["correlations"] for result in results)
    ]
    heads = ["method", "set", "trials", *(_SHORT[name] for name in names)]
    heads += ["chosen", "best", "own settings", "mean", "regret", "gain"]
    rows = [[result["method"], result["dataset"], str(len(result["ranking"]))] for result in results]
    studies = [result["study"] for result in results]
    for row, study in zip(rows, studies, strict=True):
        row += [_number(study["correlations"].get(name), 2) for name in names]
        row += [_number(study[key], 1) for key in ("chosen", "oracle", "default", "mean", "regret", "gain")]
    means = [_mean([study["correlations"].get(name) for study in studies]) for name in names]
    last = ["mean", "", ""] + [_number(mean, 2) for mean in means]
    last += [
        _number(_mean([s[key] for s in studies]), 1)
        for key in ("chosen", "oracle", "default", "mean", "regret", "gain")
    ]
    table = [heads, ["---"] * len(heads), *rows, last]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def _read(folder: str) -> dict[str, Any]:
    place = Folder(folder, setting="sweep folder")
    if not place.exists("tune.json"):
        raise UserError(f"Folder {folder!r} is not a finished sweep: give a folder such as runs/tune-NAME.")
    result: dict[str, Any] = place.read_json("tune.json")
    trials = [Trial(**entries) for entries in result["trials"]]
    study = study_of(ranking(trials), available(trials))  # by the rule of today, whichever ranked the sweep
    if study is None:
        raise UserError(f"Sweep {folder!r} knows no accuracies: run it with tune.oracle=true.")
    result["study"] = study.as_dict()
    return result


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
