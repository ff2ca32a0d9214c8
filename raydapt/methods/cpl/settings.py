"""The settings of CPL."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from raydapt.settings.types import STRICT, Auto, NonNegative, PositiveInt, Share


@dataclass(frozen=True, kw_only=True)
class CplSettings:
    """Candidate pseudo-labels."""

    __pydantic_config__ = STRICT

    rounds: PositiveInt = 10
    """Rounds; round n labels n / rounds of the images."""
    alpha: Annotated[float, Gt(0), Le(1)] | Auto = "auto"
    """Quantile of the top probabilities that bounds an image's candidate set (intra-image rule)."""
    beta: Share | Auto = "auto"
    """Quantile of a class's column below which an image is no candidate (inter-image rule)."""
    unlabelled_weight: NonNegative = 1.0
    """Factor of the candidates' loss beside that of labelled images (SSL, TRZSL)."""
