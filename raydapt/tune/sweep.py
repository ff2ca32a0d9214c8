"""The story of a sweep, from a space of settings to a choice without labels.

    space -> trials, drawn (random, grid) or asked for one by one (Optuna)
      -> artefacts: features, crops, synthetic images of the largest count, those held out for the scores
      -> trials on Ray Tune, each scored without labels; and the model as it is
      -> ranks of the scores, the best trial as chosen.yaml, a report

Running the same command again goes on where it was; no label is read unless ``tune.oracle=true`` asks for the study.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from ray.tune.search.sample import Domain

from raydapt.cluster.joining import ensure_ray, require_shared
from raydapt.errors import UserError
from raydapt.methods import scores
from raydapt.methods.configuration import changed_settings
from raydapt.methods.table import GROUPS, spec_of
from raydapt.run.making import artefacts_of, make_all, make_artefacts, make_features
from raydapt.run.plan import FEATURES, held_out_artefacts, make_plan
from raydapt.run.tracking import names_of, tracked
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree
from raydapt.store.environment import environment
from raydapt.store.fingerprint import fingerprint
from raydapt.store.run_record import Run, run_name
from raydapt.tune.report import write_sweep_report
from raydapt.tune.search_space import Settings, check_ends, draw_trials, parse_space, trial_config
from raydapt.tune.selection import CONSENSUS, UNADAPTED, Trial, available, ranking, study_of
from raydapt.tune.trials import Sweep, answers_of, unadapted_trial
from raydapt.tune.tuner import run_trials

_LOG = logging.getLogger(__name__)
RESULT, CHOSEN, CHOSEN_BY_REVIEW = "tune.json", "chosen.yaml", "chosen-by-review.yaml"
_COUNT = "synthesis.samples_per_class"
_GROUPS_OF_ARTEFACTS = ("method", "model", "synthesis", "lora", *GROUPS)
_ELSEWHERE = ("name", "runs", "store", "ray", "tune", "space", "track")


def tune(config: Config) -> str:
    """Runs a sweep as `run_sweep` does, and returns in words what was chosen."""
    return _in_words(run_sweep(config))


def run_sweep(config: Config) -> Run:
    """Runs a sweep, or what is left of it, and returns its folder.

    Raises:
        UserError: For a space that cannot work, or when not one trial finished.
    """
    names_of(config)
    space = parse_space(config)
    drawn = None if config.tune.search == "optuna" else draw_trials(config, space)
    if drawn is None:
        check_ends(config, space)
    n_classes = len(make_plan(config).classes.names)  # what cannot work is told before anything is made
    record = Run(config.runs, _name_of(config) if config.name == "auto" else config.name)
    record.make()
    with record.lock():
        _claim(record, config)
        if not record.exists(RESULT):
            with tracked(config, record, sweep=True):
                trials = _run(record, config, drawn, space, n_classes)
                record.write_json(RESULT, _result(config, trials))
                record.write_text(CHOSEN, chosen_yaml(config, ranking(trials)[0][0]))
        if not record.exists("report.html"):
            write_sweep_report(record.folder)
    return record


def chosen_yaml(config: Config, trial: Trial, *, by: str = "without labels") -> str:
    """The job file of a trial: `raydapt run` takes it as it is."""
    chosen = replace(trial_config(config, trial.settings), tune=Config().tune, space={}, name="auto")
    lines = f"# Chosen {by} among the trials of a sweep: trial {trial.number}.\n#   raydapt run FILE\n"
    return lines + yaml.safe_dump(changed_settings(chosen), sort_keys=False, allow_unicode=True)


def _run(
    record: Run, config: Config, drawn: Sequence[Settings] | None, space: Mapping[str, Domain], n_classes: int
) -> list[Trial]:
    ensure_ray(config.ray)
    require_shared(config.store, setting="store")
    require_shared(config.runs, setting="runs")
    show = config.ray.progress
    config = replace(config, store=_absolute(config.store), ray=replace(config.ray, progress=False))
    points = drawn if drawn is not None else _corners(space)
    first = max([_count(config, settings) for settings in points], default=0)
    _LOG.info(f"tune: {len(drawn) if drawn is not None else config.tune.trials} trials in {record.path}")
    held_out = _warm(config, points, first)
    sweep = Sweep(
        config=config, folder=_absolute(config.runs) + f"/{record.name}", held_out=held_out, first_held_out=first
    )
    trials = run_trials(sweep, drawn, space, show=show)
    if not ranking(trials):
        errors = [trial.error for trial in trials if trial.error]
        why = f"the first one: {errors[0]}" if errors else "all were stopped early, raise tune.grace"
        raise UserError(f"Not one of the {len(trials)} trials of {record.path!r} finished ({why}).")
    return _with_consensus(sweep, n_classes, [*trials, unadapted_trial(sweep)])


def _with_consensus(sweep: Sweep, n_classes: int, trials: Sequence[Trial]) -> list[Trial]:
    """The trials, the finished ones with their agreement with what most of them say of the images that all answered."""
    finished = [trial for trial in trials if trial.state == "finished"]
    answers = [answers_of(sweep.record(trial.number)) for trial in finished]
    shared = set.intersection(*(set(index_E.tolist()) for index_E, _ in answers)) if answers else set()
    if not shared:
        return list(trials)
    index_S = torch.tensor(sorted(shared))
    class_TS = torch.stack([class_E[torch.isin(index_E, index_S)] for index_E, class_E in answers])
    kappa_T = scores.consensus(class_TS, n_classes)
    found = {trial.number: kappa for trial, kappa in zip(finished, kappa_T, strict=True)}
    return [
        replace(trial, scores={**trial.scores, CONSENSUS: found[trial.number]}) if trial.number in found else trial
        for trial in trials
    ]


def _warm(config: Config, points: Sequence[Settings], first: int) -> dict[str, Any]:
    """Makes what the trials share, once, before there are any; returns the synthetic images held out for the scores."""
    quiet = replace(config, synthesis=replace(config.synthesis, held_out=0))
    plan = make_plan(quiet)
    features = make_features(plan)
    held_out: dict[str, Any] = {}
    if config.synthesis.held_out:
        whole = replace(plan.config, synthesis=config.synthesis)
        pixels = plan.spec.input_kind(plan.config) == "pixels"
        specs = held_out_artefacts(whole, plan.facts, first=first, pixels=pixels)
        held_out = dict(artefacts_of(make_all(plan, specs, {FEATURES: features})))
        del held_out[FEATURES]
    done = set()
    for settings in sorted(points, key=lambda settings: -_count(config, settings)):  # the largest count first
        of_artefacts = {key: v for key, v in settings.items() if key.startswith(_GROUPS_OF_ARTEFACTS) and key != _COUNT}
        if repr(of_artefacts) not in done:
            done.add(repr(of_artefacts))
            make_artefacts(make_plan(trial_config(quiet, settings)))
    return held_out


def _count(config: Config, settings: Settings) -> int:
    """Synthetic images of each class that a trial may learn from."""
    trial = trial_config(config, settings)
    return spec_of(trial.method).synthetic_images(trial)


def _corners(space: Mapping[str, Domain]) -> list[Settings]:
    """Trials that between them ask for every artefact that a search may come to ask for, each setting by itself."""
    corners: list[Settings] = [{}]
    for key, domain in space.items():
        if key.startswith(_GROUPS_OF_ARTEFACTS):
            upper = getattr(domain, "upper", None)
            ends = getattr(domain, "categories", [upper - 1] if isinstance(upper, int) else [])
            corners += [{key: end} for end in ends]
    return corners


def _claim(record: Run, config: Config) -> None:
    """Takes the folder for this sweep, or refuses one that holds another."""
    digest = _digest(config)
    held = record.read_json("fingerprint.json")["fingerprint"] if record.exists("fingerprint.json") else digest
    if held != digest:
        raise UserError(f"Run folder {record.path!r} holds something else: give another name=….")
    record.write_text("config.yaml", yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True))
    record.write_json("fingerprint.json", {"fingerprint": digest})
    record.write_json("environment.json", environment())


def _digest(config: Config) -> str:
    tree = {key: value for key, value in as_tree(config).items() if key not in _ELSEWHERE}
    search = {key: v for key, v in asdict(config.tune).items() if "per_trial" not in key and key != "concurrent"}
    return fingerprint("sweep", tree | {"tune": search, "space": config.space}, [])


def _name_of(config: Config) -> str:
    return f"tune-{run_name(config.method, config.data.source, config.data.paradigm, config.seed, _digest(config))}"


def _result(config: Config, trials: Sequence[Trial]) -> dict[str, Any]:
    """What ``tune.json`` holds."""
    ranked, names = ranking(trials), available(trials)
    study = study_of(ranked, names)
    return {
        "method": config.method,
        "dataset": config.data.source,
        "paradigm": config.data.paradigm,
        "scores": names,
        "chosen": ranked[0][0].number,
        "ranking": [{"number": trial.number, "combined": combined} for trial, combined in ranked],
        "trials": [asdict(trial) for trial in trials],
        "study": None if study is None else study.as_dict(),
    }


def _in_words(record: Run) -> str:
    result = record.read_json(RESULT)
    chosen = next(trial for trial in result["trials"] if trial["number"] == result["chosen"])
    told = ", ".join(f"{key}={value}" for key, value in chosen["settings"].items()) or "the job's own settings"
    states = [trial["state"] for trial in result["trials"] if trial["number"] != UNADAPTED]
    lines = [
        f"{record.name}: {states.count('finished')} of {len(states)} trials finished, "
        f"{states.count('stopped')} stopped early, {states.count('failed')} failed",
        f"Chosen without labels: {'' if chosen['number'] == UNADAPTED else 'trial '}{chosen['number']}: {told}",
        f"Run it: raydapt run {record.file(CHOSEN)}",
        f"Report: {record.file('report.html')}",
    ]
    return "\n".join(lines)


def _absolute(place: str) -> str:
    """A local folder under the name that it has for every process; addresses stay as they are."""
    return place.rstrip("/") if "://" in place else str(Path(place).absolute())
