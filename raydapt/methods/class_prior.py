"""What is known of how often each class occurs, and what follows from it for all that assumes equal shares.

``unknown`` is not ``uniform``: with the one nobody says how often classes occur, and balance is a weak prior that no
loss and no score rewards as such; with the other somebody says that all are equally frequent, and it may be held to.

Legend: C classes, N images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raydapt.errors import UserError

Kind = Literal["unknown", "uniform", "stated"]
Statement = str | Mapping[str, str | float]
LEVELS: dict[str, float] = {"rare": 1.0, "normal": 4.0, "common": 16.0}
"""Three levels, easy to say: a common class is 16 times as frequent as a rare one."""
_CONTRADICTION = 0.3
"""Total variation distance from which on predictions contradict a stated prior."""


@dataclass(frozen=True, kw_only=True)
class ClassPrior:
    """How often each class is expected; made by `class_prior`."""

    kind: Kind
    share_C: Tensor
    """float64 shares that sum to 1; equal ones where nothing is known."""

    @property
    def known(self) -> bool:
        """Whether somebody said how often classes occur; else readers treat equal shares as a guess."""
        return self.kind != "unknown"

    def among(self, class_K: Tensor) -> ClassPrior:
        """The same of some of the classes alone, such as those that a pseudo-label may name; int64 `class_K`.

        Where the statement gives all of them nothing, they are equally frequent.
        """
        share_K = self.share_C[class_K.cpu()]
        total = float(share_K.sum())
        share_K = share_K / total if total > 0 else torch.full_like(share_K, 1 / len(share_K))
        return ClassPrior(kind=self.kind, share_C=share_K)

    def places(self, per_class: int) -> int | npt.NDArray[np.int64]:
        """What boards take for their size: `per_class` for all while nothing is known, else `quotas` [C]."""
        return self.quotas(per_class).numpy() if self.known else per_class

    def quotas(self, per_class: int) -> Tensor:
        """Places int64 [C] for pseudo-labels, of `per_class` on average, at least 1 for a class that may occur.

        For top-k, leader boards and CPL's candidates, which otherwise give each class as many. The sum is as near to
        C `per_class` as those that need at least one allow: the largest remainders are rounded up.
        """
        places = per_class * len(self.share_C)
        exact_C = self.share_C * places
        quota_C = exact_C.floor().to(torch.int64)
        missing = places - int(quota_C.sum())
        order_C = (exact_C - quota_C).argsort(descending=True, stable=True)
        quota_C[order_C[:missing]] += 1
        return torch.where(self.share_C > 0, quota_C.clamp_min(1), quota_C)

    def upper_quantiles(self, beta: float) -> Tensor:
        """CPL's inter-image quantile of every class, float64 [C]: 1 - (1 - beta) C share, within [0, 1].

        With equal shares all are `beta`: a class keeps the share 1 - beta of the images. A class twice as frequent
        keeps twice as many.
        """
        return (1 - (1 - beta) * len(self.share_C) * self.share_C).clamp(0, 1)

    def target(self, predicted_C: Tensor | None = None) -> Tensor:
        """Distribution float32 [C] that fairness and alignment terms pull the mean prediction towards.

        Args:
            predicted_C: The model's mean prediction. Where the prior is unknown, the target is half of it and half
                equal shares, which pulls against collapse and not against inequality; left out, equal shares.
        """
        if self.known or predicted_C is None:
            return self.share_C.float()
        predicted_C = predicted_C.detach().float()
        return 0.5 * self.share_C.to(predicted_C) + 0.5 * predicted_C / predicted_C.sum()

    def log_prior(self, least: float = 1e-6) -> Tensor | None:
        """Log shares float32 [C] for a mixture, none below log `least`; None where it has to find them itself."""
        if not self.known:
            return None
        share_C = self.share_C.clamp_min(least)
        return (share_C / share_C.sum()).log().float()

    def score_reference(self) -> Tensor | None:
        """Shares float32 [C] that `class_balance` and `mutual_information` are measured against.

        None where nothing is known: such a score then rewards equality as such and must not decide.
        """
        return self.share_C.float() if self.known else None

    def weighed(self, probability_BC: Tensor) -> Tensor:
        """Probabilities times C shares, renormalised: Bayes' rule for a model that took all classes for equal.

        Unchanged where nothing is known.
        """
        if not self.known:
            return probability_BC
        weighed_BC = probability_BC * (len(self.share_C) * self.share_C).to(probability_BC)
        return weighed_BC / weighed_BC.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    def balance(self, predicted_C: Tensor) -> float | None:
        """1 - KL(predicted || prior) / log C, at least 0; None where nothing is known.

        With equal shares it is the entropy of the mean prediction as a share of log C, as `scores.class_balance`.
        """
        if not self.known:
            return None
        if len(self.share_C) < 2:
            return 1.0
        predicted_C = predicted_C.double() / predicted_C.double().sum()
        prior_C = self.share_C.clamp_min(1e-6) / self.share_C.clamp_min(1e-6).sum()
        divergence = float((torch.special.xlogy(predicted_C, predicted_C) - predicted_C * prior_C.log()).sum())
        return max(0.0, 1 - divergence / math.log(len(prior_C)))

    def contradiction(self, predicted_C: Tensor, names: Sequence[str]) -> str | None:
        """A sentence where the predicted shares are far from stated ones; None where they are not, or nothing is known.

        A wrong statement costs up to 7 points, so a report says this.
        """
        if not self.known:
            return None
        predicted_C = predicted_C.double() / predicted_C.double().sum()
        difference_C = predicted_C - self.share_C
        distance = float(difference_C.abs().sum()) / 2
        if distance < _CONTRADICTION:
            return None
        worst = int(difference_C.abs().argmax())
        return (
            f"The predictions contradict data.class_prior: {distance:.0%} of the images would have to change class; "
            f"{names[worst]!r} was expected for {float(self.share_C[worst]):.0%} and is predicted for "
            f"{float(predicted_C[worst]):.0%}."
        )


def class_prior(stated: Statement, names: Sequence[str]) -> ClassPrior:
    """Reads the setting ``data.class_prior``.

    Args:
        stated: ``unknown``, ``uniform``, or for some or all classes ``common``, ``normal``, ``rare`` or a number. With
            levels a class that is left out is normal; numbers are relative and have to be given for all classes.
        names: The classes.

    Raises:
        UserError: When a name is no class, a value is neither a level nor a number of at least 0, levels and
            numbers are mixed, numbers leave a class out, or all are 0.
    """
    n_classes = len(names)
    equal_C = torch.full((n_classes,), 1 / n_classes, dtype=torch.float64)
    if isinstance(stated, str):
        if stated not in ("unknown", "uniform"):
            raise UserError(
                f"Setting data.class_prior={stated!r} is neither unknown nor uniform: say one of these, or for classes "
                "common, normal, rare or a number, as in {oak: common, birch: rare}."
            )
        return ClassPrior(kind="unknown" if stated == "unknown" else "uniform", share_C=equal_C)
    for name in stated:
        _check_name(name, names)
    if not stated:
        raise UserError("Setting data.class_prior={} names no class: say unknown, or how frequent which class is.")
    if all(isinstance(value, str) for value in stated.values()):
        weights = [LEVELS[_level(name, str(stated.get(name, "normal")))] for name in names]
    else:
        weights = _numbers(stated, names)
    weight_C = torch.tensor(weights, dtype=torch.float64)
    return ClassPrior(kind="stated", share_C=weight_C / weight_C.sum())


def _check_name(name: str, names: Sequence[str]) -> None:
    if name in names:
        return
    near = get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the classes are {', '.join(list(names)[:10])}."
    raise UserError(f"Setting data.class_prior names {name!r}, which is no class: {hint}")


def _level(name: str, level: str) -> str:
    if level not in LEVELS:
        raise UserError(
            f"Setting data.class_prior gives {name!r} the level {level!r}: say common, normal or rare, or a number."
        )
    return level


def _numbers(stated: Mapping[str, str | float], names: Sequence[str]) -> list[float]:
    for name, value in stated.items():
        if isinstance(value, str):
            raise UserError(
                f"Setting data.class_prior gives {name!r} the level {value!r} and other classes numbers: say levels "
                "for all, or numbers for all."
            )
        if isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise UserError(
                f"Setting data.class_prior gives {name!r} the number {value!r}: a share or a count is 0 or more."
            )
    missing = [name for name in names if name not in stated]
    if missing:
        raise UserError(
            f"Setting data.class_prior has no number for {missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}: with numbers every class needs one."
        )
    weights = [float(stated[name]) for name in names]
    if not sum(weights):
        raise UserError("Setting data.class_prior gives every class 0: at least one has to occur.")
    return weights
