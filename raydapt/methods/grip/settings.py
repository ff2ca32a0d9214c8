"""The settings of GRIP."""

from dataclasses import dataclass
from typing import Literal

from raydapt.settings.types import STRICT, Auto, NonNegative, PositiveInt


@dataclass(frozen=True, kw_only=True)
class GripSettings:
    """Growing pseudo-labels, iteratively."""

    __pydantic_config__ = STRICT

    rounds: PositiveInt = 10
    """Rounds; round n labels n / rounds of the images."""
    board: Literal["clean", "published"] = "clean"
    """Leader board that stops at the first success, or the published one, which depends on file order."""
    labelled_weight: NonNegative | Auto = "auto"
    """Factor of the labelled images' loss in SSL and TRZSL; ``auto``: GRIP's, by the numbers of images."""
