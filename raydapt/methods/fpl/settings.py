"""The settings of FPL."""

from dataclasses import dataclass
from typing import Literal

from raydapt.settings.types import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True)
class FplSettings:
    """Few pseudo-labels: the most confident images of each class, once."""

    __pydantic_config__ = STRICT

    shots: PositiveInt = 16
    """Pseudo-labelled images per class."""
    selection: Literal["top", "board"] = "top"
    """The most probable images of each class (paper), or the leader board of the public code, in which an image goes to
    its own best class first and the order of the images matters."""
    trzsl_weight: Literal["selected", "unlabelled"] = "selected"
    """As `grip.trzsl_weight`."""
