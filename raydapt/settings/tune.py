"""The settings of a sweep."""

from dataclasses import dataclass
from typing import Literal

from raydapt.settings.types import STRICT, Auto, Count, NonNegative, Positive, PositiveInt


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a sweep looks for settings. It reads no label unless `oracle` says so."""

    __pydantic_config__ = STRICT

    search: Literal["random", "grid", "optuna"] = "random"
    """Random and grid draw all trials beforehand, the job's own settings first; Optuna goes by the trials before."""
    trials: PositiveInt = 24
    """How many, the job's own settings included; a grid has as many as it has points."""
    seed: Count = 0
    """Of the draws; the trials' own seed is the job's."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """Ends trials early whose label-free scores stay behind; they are scored after every round, or after every epoch
    where there is but one round."""
    grace: PositiveInt = 2
    """Rounds (or epochs) that every trial may finish."""
    concurrent: PositiveInt | Auto = "auto"
    """Trials at a time; ``auto``: one per CPU of the machine, or what the cluster holds."""
    cpus_per_trial: Positive = 1.0
    """Logical CPUs that each trial reserves."""
    gpus_per_trial: NonNegative | Auto = "auto"
    """``auto``: a quarter of a GPU where there are some."""
    oracle: bool = False
    """Study: read the test labels as well, to tell how close the choice comes that never sees them."""
