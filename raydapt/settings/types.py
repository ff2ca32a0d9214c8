"""What settings are made of: bounded numbers, ``auto``, and strict groups."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, StringConstraints

Auto = Literal["auto"]
PositiveInt = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
NodeLabel = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w./-]*=[A-Za-z0-9][\w.-]*$")]
"""Of a node of the Ray cluster, ``key=value``."""
STRICT = ConfigDict(extra="forbid", strict=False)
"""Unknown keys are refused."""
HIDDEN = {"hidden": True}
"""Metadata of a field that is no setting of its own."""
