"""Ray Tune: trials as functions in long-lived actors, so that importing torch and loading CLIP is paid once an actor.

Trials of one process are plain functions; only a job with ``train.workers`` nests Ray Train in every trial.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain
from ray.util.state import list_placement_groups

from raydapt.cluster.nodes import capacity, selector
from raydapt.errors import UserError
from raydapt.settings.config import Config
from raydapt.store.folder import Folder
from raydapt.train.scoring import MEAN, SCORES
from raydapt.tune.progress import SweepProgress
from raydapt.tune.search_space import Settings, rounded
from raydapt.tune.selection import Trial
from raydapt.tune.trials import TRIAL, Sweep, read_trial, run_trial

_NAME = "ray_tune"
_INDEX = "trial"
_GPUS_PER_TRIAL = 0.25
_REDUCTION = 3
_NO_LIMIT = 1_000_000


def run_trials(
    sweep: Sweep,
    drawn: Sequence[Settings] | None,
    space: Mapping[str, Domain],
    *,
    show: bool | Literal["auto"] = "auto",
) -> list[Trial]:
    """Carries out a sweep, or what is left of one that was killed, and returns its trials in order.

    Args:
        sweep: The sweep.
        drawn: The settings of every trial; None when the search draws them as it goes.
        space: What such a search draws from.
        show: How progress is shown, as of `raydapt.progress.Progress`.

    Raises:
        UserError: When the cluster cannot hold a trial.
    """
    config = sweep.config
    resources, concurrent = trial_resources(config)
    function = tune.with_parameters(_trial, sweep=sweep, drawn=drawn)
    trainable = tune.with_resources(function, resources)
    storage = Folder(sweep.folder, setting="runs")
    path, files = storage.file(_NAME), storage.arrow_filesystem()
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # so that relative paths mean the same in a trial
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints boxes and folders whatever the verbosity
    if tune.Tuner.can_restore(path, storage_filesystem=files):
        tuner = tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, storage_filesystem=files)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={_INDEX: tune.grid_search(list(range(len(drawn))))} if drawn is not None else dict(space),
            tune_config=tune.TuneConfig(
                metric=MEAN,
                mode="max",
                num_samples=1 if drawn is not None else config.tune.trials,
                max_concurrent_trials=concurrent,
                scheduler=_scheduler(config),
                search_alg=_searcher(config),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=_NAME,
                storage_path=storage.path,
                storage_filesystem=files,
                verbose=0,
                callbacks=[_Tell()],
            ),
        )
    numbers = [f"{index:03d}" for index in range(len(drawn))] if drawn is not None else []
    total = len(drawn) if drawn is not None else config.tune.trials
    told_settings = dict(zip(numbers, drawn or [], strict=True))
    with SweepProgress(sweep, numbers, told_settings, total=total, show=show) as told:
        _TOLD.append(told)
        try:
            results = tuner.fit()
        finally:
            _TOLD.pop()
    return [_collect(sweep, drawn, results[at]) for at in range(len(results))]


def _trial(config: dict[str, Any], *, sweep: Sweep, drawn: Sequence[Settings] | None) -> None:
    """What an actor runs."""
    number, settings = _name_of(config, tune.get_context().get_trial_id()), _settings_of(config, drawn)
    callbacks = [TuneReportCallback()] if sweep.config.train.workers else []  # type: ignore[no-untyped-call]
    run_trial(sweep, number, settings, tune.report, callbacks)


def _name_of(config: Mapping[str, Any], trial_id: str) -> str:
    return f"{config[_INDEX]:03d}" if _INDEX in config else trial_id


def _settings_of(config: Mapping[str, Any], drawn: Sequence[Settings] | None) -> Settings:
    return rounded(config) if drawn is None else drawn[config[_INDEX]]


def _collect(sweep: Sweep, drawn: Sequence[Settings] | None, result: tune.Result) -> Trial:
    """A trial as its folder tells it, or where it left nothing there, as Ray Tune does."""
    metrics, config = result.metrics or {}, result.config or {}
    record = sweep.record(_name_of(config, str(metrics.get("trial_id", "lost"))))
    if record.exists(TRIAL):
        return read_trial(record)
    settings = _settings_of(config, drawn)
    if result.error is not None:
        lines = [line for line in str(result.error).splitlines() if line.strip()]
        return Trial(number=record.name, settings=settings, state="failed", error=(lines or ["lost"])[-1].strip()[:500])
    scores = {name: metrics[name] for name in (*SCORES, MEAN) if name in metrics}
    seconds = float(metrics.get("time_total_s", 0.0))
    return Trial(number=record.name, settings=settings, state="stopped", scores=scores, seconds=seconds)


class _Tell(tune.Callback):
    """Passes on what trials come to; Ray Tune keeps it in a file, so who is told stands beside it."""

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for told in _TOLD:
            told.running([_trial_name(trial) for trial in trials if trial.status == "RUNNING"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        scores = {name: result[name] for name in (*SCORES, MEAN) if result.get(name) is not None}
        for told in _TOLD:
            told.scored(_trial_name(trial), rounded(trial.config), scores, result["training_iteration"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for told in _TOLD:
            told.over(_trial_name(trial), trial.last_result.get(MEAN))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for told in _TOLD:
            told.over(_trial_name(trial), None, failed=True)


_TOLD: list[SweepProgress] = []
"""Of the sweep that runs in this process."""


def _trial_name(trial: Any) -> str:
    return _name_of(trial.config, trial.trial_id)


def _scheduler(config: Config) -> TrialScheduler | None:
    settings = config.tune
    if settings.scheduler == "asha":
        return ASHAScheduler(max_t=_NO_LIMIT, grace_period=settings.grace, reduction_factor=_REDUCTION)
    if settings.scheduler == "median":
        return MedianStoppingRule(time_attr="training_iteration", grace_period=settings.grace)
    return None


def _searcher(config: Config) -> Searcher | None:
    return OptunaSearch(seed=config.tune.seed) if config.tune.search == "optuna" else None


def trial_resources(config: Config) -> tuple[tune.PlacementGroupFactory, int]:
    """What a trial takes and on which nodes, and how many fit at a time.

    A trial that nests Ray Train only drives it, and may do so on any node; any other one holds a model.
    """
    settings, train, label = config.tune, config.train, config.ray.model_nodes
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    models, everywhere = capacity(label), capacity()
    cpus, gpus = models["CPU"], models["GPU"]
    if len(nodes) == 1:  # a local cluster counts more CPUs than there are, for actors that wait
        cpus = min(cpus, float(os.cpu_count() or 1))
    per_trial = settings.gpus_per_trial
    if per_trial == "auto":
        per_trial = _GPUS_PER_TRIAL if gpus and not train.workers else 0.0
    if train.workers:
        _require_dashboard(train.most_workers)
        of_workers = train.most_workers * train.cpus_per_worker
        fit = min(models["CPU"] // of_workers, everywhere["CPU"] // (settings.cpus_per_trial + of_workers))
    else:
        fit = min(cpus // settings.cpus_per_trial, gpus // per_trial if per_trial else cpus)
    if not fit:
        raise UserError(
            f"Settings tune.cpus_per_trial={settings.cpus_per_trial:g}, tune.gpus_per_trial={per_trial:g} and "
            f"train.workers={train.workers} want more than the {cpus:g} CPUs and {gpus:g} GPUs of the cluster"
            f"{f' on nodes labelled {label}' if label else ''}: lower them."
        )
    concurrent = int(fit) if settings.concurrent == "auto" else min(settings.concurrent, int(fit))
    labels: dict[str, Any] = {"bundle_label_selector": [selector(label)]} if label and not train.workers else {}
    bundle = {"CPU": settings.cpus_per_trial, "GPU": float(per_trial)}
    return tune.PlacementGroupFactory([bundle], **labels), concurrent


def _require_dashboard(workers: int) -> None:
    """Ray Train within trials leaks its placement groups where no State API, that is no dashboard, can clean them."""
    try:
        # Asked of this cluster: where the machine runs several, Ray takes none of them by itself.
        list_placement_groups(address=ray.get_runtime_context().gcs_address, limit=1)
    except Exception:  # whatever is wrong with the State API, nested training must not begin
        raise UserError(
            f"Setting train.workers={workers} nests Ray Train in every trial, which needs a cluster with a dashboard: "
            "start one with 'ray start --head' and set ray.address=auto, or set train.workers=0."
        ) from None
