"""The settings of one run: the shared groups, and the groups of the chosen method alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from raydapt.settings.groups import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    PredictSettings,
    RaySettings,
    SecondSettings,
    StageSettings,
    SynthesisSettings,
    TrainSettings,
)
from raydapt.settings.language import CaptionSettings, DescribeSettings
from raydapt.settings.tune import TuneSettings
from raydapt.settings.types import HIDDEN, STRICT, Count

Own = TypeVar("Own")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `raydapt.methods.configuration` makes it of job files and overrides.

    A value ``auto`` is resolved once, when the run is planned, and the resolved configuration is what stands in the run
    folder; an ``auto`` that stays there is a resource, chosen from the cluster at hand.
    """

    __pydantic_config__ = STRICT

    method: str = "cpl"
    """What adapts the model; its own settings stand in the group of the same name."""
    seed: Count = 0
    """Of everything random in learning; images that are made or described have seeds of their own."""
    name: str = "auto"
    """The run's folder; ``auto``: method, data, paradigm, seed and a fingerprint of everything that matters."""
    runs: str = "runs"
    """Where run folders lie: a local path or any fsspec URL."""
    store: str = "store"
    """Where artefacts lie, shared by all runs: a local path or any fsspec URL."""
    guard: bool = True
    """Without labels, answer with zero-shot or with the mean of both where evidence that reads no label is against the
    adapted model; ``off`` answers as adapted in any case."""
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = field(default_factory=lambda: ["tensorboard"])
    """Who is told of runs and sweeps; addresses, keys and modes come from the trackers' own variables, see
    docs/report.md."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    second: SecondSettings = field(default_factory=SecondSettings)
    features: StageSettings = field(default_factory=StageSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    tune: TuneSettings = field(default_factory=TuneSettings)
    space: dict[str, Any] = field(default_factory=dict)
    """What a sweep varies: dotted setting to ``{uniform: [low, high]}``, ``loguniform``, ``integer`` or ``choice``."""
    own: Mapping[str, Any] = field(default_factory=dict, metadata=HIDDEN)
    """The method's own groups by their names, such as ``{"cpl": CplSettings()}``; in a job file they stand beside the
    shared groups."""

    def of(self, kind: type[Own]) -> Own:
        """The method's own settings of a kind, such as ``config.of(CplSettings)``.

        Raises:
            KeyError: If the method has none of that kind.
        """
        for settings in self.own.values():
            if isinstance(settings, kind):
                return settings
        raise KeyError(f"method {self.method} has no {kind.__name__}")

    def with_own(self, settings: Any) -> "Config":
        """The same with another value of one of the method's own groups."""
        names = [name for name, held in self.own.items() if type(held) is type(settings)]
        if not names:
            raise KeyError(f"method {self.method} has no {type(settings).__name__}")
        return replace(self, own={**self.own, names[0]: settings})
