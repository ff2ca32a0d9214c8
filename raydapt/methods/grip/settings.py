"""The settings of GRIP."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

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
    trzsl_weight: Literal["selected", "unlabelled"] = "selected"
    """TRZSL: lambda is the labelled images over those that the round selected (public code), or over all unlabelled
    ones (paper)."""
    train_share: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the labelled and pseudo-labelled images that a round learns from; 0.8 in the public code, which keeps
    the rest to validate with, and then returns the last epoch all the same."""
