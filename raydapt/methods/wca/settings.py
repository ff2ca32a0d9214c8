"""The settings of WCA beside those of ``fair``."""

from dataclasses import dataclass

from raydapt.settings.types import STRICT


@dataclass(frozen=True, kw_only=True)
class WcaSettings:
    """WCA: crops against descriptions. Both, and their weights, are set in ``fair``."""

    __pydantic_config__ = STRICT

    unit_means: bool = True
    """Normalise the weighted mean of the crops and that of a class's descriptions, as the public code does; off: the
    double sum of the paper's formula as it stands, in which classes of unlike descriptions score less."""
