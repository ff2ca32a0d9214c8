"""The settings of FPL."""

from dataclasses import dataclass

from raydapt.settings.types import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True)
class FplSettings:
    """Few pseudo-labels: the most confident images of each class, once."""

    __pydantic_config__ = STRICT

    shots: PositiveInt = 16
    """Pseudo-labelled images per class."""
