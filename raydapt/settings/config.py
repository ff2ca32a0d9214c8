"""Every setting of raydapt: frozen dataclasses, a YAML file and ``key=value`` overrides.

``load_config("jobs/cpl.yaml", ["data.source=eurosat", "seed=0"])`` is the only way in. Unknown keys are
refused with the nearest name. A value ``"auto"`` is resolved once, by the pipeline, and the resolved configuration is
what stands in the run folder; an ``auto`` that stays there is a resource, chosen from the cluster at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raydapt.methods.air.settings import AirSettings
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.methods.cpl.settings import CplSettings
from raydapt.methods.fair.settings import FairSettings
from raydapt.methods.fpl.settings import FplSettings
from raydapt.methods.grip.settings import GripSettings
from raydapt.methods.latteclip.settings import LatteclipSettings
from raydapt.settings.groups import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    RaySettings,
    StageSettings,
    SynthesisSettings,
    TrainSettings,
)
from raydapt.settings.language import CaptionSettings, DescribeSettings
from raydapt.settings.tree import apply_override, read_yaml, settings_from_tree
from raydapt.settings.tune import TuneSettings
from raydapt.settings.types import STRICT, Count

METHODS = ("zero_shot", "ensemble", "wca", "fpl", "grip", "cpl", "air", "fair", "coreg", "latteclip")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. The run's name is a fingerprint of everything that matters unless it is given."""

    __pydantic_config__ = STRICT

    method: Literal["zero_shot", "ensemble", "wca", "fpl", "grip", "cpl", "air", "fair", "coreg", "latteclip"] = "cpl"
    seed: Count = 0
    name: str = "auto"
    runs: str = "runs"
    store: str = "store"
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    features: StageSettings = field(default_factory=StageSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    fpl: FplSettings = field(default_factory=FplSettings)
    grip: GripSettings = field(default_factory=GripSettings)
    cpl: CplSettings = field(default_factory=CplSettings)
    air: AirSettings = field(default_factory=AirSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    fair: FairSettings = field(default_factory=FairSettings)
    coreg: CoregSettings = field(default_factory=CoregSettings)
    latteclip: LatteclipSettings = field(default_factory=LatteclipSettings)
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    tune: TuneSettings = field(default_factory=TuneSettings)
    space: dict[str, Any] = field(default_factory=dict)
    """What a sweep varies: dotted setting to ``{uniform: [low, high]}``, ``loguniform``, ``integer`` or ``choice``."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies ``key=value`` overrides and checks every setting.

    Args:
        path: A job file; None takes the defaults.
        overrides: Dotted keys, such as ``train.epochs=5``; values are YAML.

    Raises:
        UserError: For a missing or broken file, an unknown key or a value of the wrong kind.
    """
    tree: dict[str, Any] = {} if path is None else read_yaml(path)
    for item in overrides:
        apply_override(tree, item)
    return config_from_tree(tree)


def config_from_tree(tree: dict[str, Any]) -> Config:
    """Builds the configuration from nested dictionaries, or raises a `UserError` of one sentence."""
    return settings_from_tree(Config, tree)
