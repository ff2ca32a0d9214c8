"""``report.html`` of a sweep: what was tried, how it was ranked without labels, what it cost, what was chosen."""

from collections.abc import Mapping
from typing import Any

import yaml

from raydapt.report.page import page_environment
from raydapt.report.run_files import flat_settings, write_text
from raydapt.store.folder import Folder
from raydapt.tune.figures import cost_picture, count_picture, parallel_picture
from raydapt.tune.selection import COMBINED, COMBINED_OF, CONSENSUS, UNADAPTED, Trial, ranking

_TITLES = {
    "synthetic_accuracy": "held-out synthetic images right",
    "agreement": "agreement with other heads",
    "cluster_agreement": "agreement with clusters of the images",
    "class_balance": "even classes",
    "prior_match": "class shares as stated",
    "mutual_information": "mutual information",
    "neighbourhood_density": "soft neighbourhood density",
    "calibrated_accuracy": "accuracy predicted by confidence",
    "stability": "stability under another view",
    CONSENSUS: "consensus of the trials",
    COMBINED: "combined: mean rank",
}


def write_sweep_report(folder: Folder) -> str:
    """Writes the report of a finished sweep and returns its path."""
    result, config = folder.read_json("tune.json"), yaml.safe_load(folder.read("config.yaml"))
    template = page_environment().get_template("sweep.html.j2")
    chosen = folder.read("chosen.yaml").decode()
    write_text(folder, "report.html", template.render(content(result, config, chosen)))
    return folder.file("report.html")


def content(result: Mapping[str, Any], config: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    """What the page shows of ``tune.json``, ``config.yaml`` and ``chosen.yaml``."""
    trials = [Trial(**entries) for entries in result["trials"]]
    ranked = ranking(trials)
    tried = [pair for pair in ranked if pair[0].number != UNADAPTED]  # it has no place on the axes of settings
    defaults = flat_settings(config)
    names = result["scores"]
    return {
        "result": result,
        "trials": trials,
        "rows": [
            {
                "place": place,
                "trial": trial,
                "settings": _in_words(trial),
                "scores": [trial.scores[name] for name in names],
                "combined": combined,
            }
            for place, (trial, combined) in enumerate(ranked, start=1)
        ],
        "others": [(trial, _in_words(trial)) for trial in trials if trial.state != "finished"],
        "titles": [_TITLES[name] for name in names],
        "decisive": [_TITLES[name] for name in names if name in COMBINED_OF],
        "missing": [_TITLES[name] for name in _TITLES if name not in (*names, COMBINED)],
        "pictures": [parallel_picture(tried, defaults), count_picture(tried), cost_picture(tried)],
        "seconds": sum(trial.seconds for trial in trials),
        "study": result["study"],
        "correlations": [(_TITLES[k], v) for k, v in ((result["study"] or {}).get("correlations") or {}).items()],
        "chosen": chosen,
        "space": config["space"],
        "tune": config["tune"],
    }


def _in_words(trial: Trial) -> str:
    return ", ".join(f"{key}={value}" for key, value in trial.settings.items()) or "the job's own settings"
