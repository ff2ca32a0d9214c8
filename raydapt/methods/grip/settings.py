"""The settings of GRIP."""

from dataclasses import dataclass
from typing import Literal

from raydapt.settings.types import STRICT, Auto, NonNegative, PositiveInt


@dataclass(frozen=True, kw_only=True)
class GripSettings:
    """Growing pseudo-labels, iteratively."""

    __pydantic_config__ = STRICT

    rounds: PositiveInt = 10
    board: Literal["clean", "published"] = "clean"
    """Leader board that stops at the first success, or the published one, which depends on file order."""
    labelled_weight: NonNegative | Auto = "auto"
