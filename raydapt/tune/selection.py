"""The choice among trials, by label-free scores alone, and how close it comes to the truth where a study knows it.

Legend: T trials, S scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from raydapt.train.scoring import DECISIVE, MEAN, SCORES

CONSENSUS = "consensus"
"""Agreement with what most trials of the sweep say, `raydapt.methods.scores.consensus`: only a sweep has it."""
COMBINED = "combined"
COMBINED_OF = (CONSENSUS, *DECISIVE)
"""What the choice goes by, all weighing the same: chosen on the development sets, fixed for every other."""
UNADAPTED = "zero-shot"
"""The number of the model as it is, which every sweep has among its candidates: no setting may be worth anything."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial as its file tells it."""

    number: str
    settings: Mapping[str, Any]
    state: str
    """`finished`, `stopped` early, or `failed`."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    accuracy: float | None = None
    """Percent right of the test images; None unless the sweep is a study."""
    zero_shot: float | None = None


def available(trials: Sequence[Trial]) -> list[str]:
    """The scores that every finished trial has, in their fixed order; the others cannot be ranked."""
    finished = [trial for trial in trials if trial.state == "finished"]
    names = (*SCORES, CONSENSUS)
    return [name for name in names if finished and all(trial.scores.get(name) is not None for trial in finished)]


def combined_scores(score_TS: Floats) -> Floats:
    """The mean over scores of a trial's rank within the sweep, as a share: 1 is best in all, 1/T is worst in all.

    Equal values share the mean of their ranks.
    """
    n_trials, n_scores = score_TS.shape
    if not n_scores:
        return np.zeros(n_trials)
    ranks_TS = np.stack([rankdata(score_T, method="average") for score_T in score_TS.T], axis=1)
    combined: Floats = ranks_TS.mean(axis=1) / n_trials
    return combined


def ranking(trials: Sequence[Trial]) -> list[tuple[Trial, float]]:
    """The finished trials with their combined score, best first; equal ones by their plain mean, then by number."""
    finished = [trial for trial in trials if trial.state == "finished"]
    names = [name for name in available(trials) if name in COMBINED_OF]
    score_TS = np.array([[trial.scores[name] for name in names] for trial in finished], dtype=np.float64)
    combined_T = combined_scores(score_TS.reshape(len(finished), len(names)))
    together = list(zip(finished, combined_T.tolist(), strict=True))
    return sorted(together, key=lambda pair: (-pair[1], -(pair[0].scores.get(MEAN) or 0.0), pair[0].number))


@dataclass(frozen=True, kw_only=True)
class Study:
    """How the scores of a sweep go with accuracy. All accuracies and regrets are in points of percent."""

    correlations: Mapping[str, float | None]
    """Spearman's, of each score and of all combined; None where one of both does not vary."""
    chosen: float
    oracle: float
    default: float | None
    """Of the job's own settings; None where they were no trial."""
    mean: float
    """Of all trials: what a blind choice gives on average."""
    zero_shot: float | None

    @property
    def regret(self) -> float:
        """What the choice loses to the best trial."""
        return self.oracle - self.chosen

    @property
    def gain(self) -> float | None:
        """What the choice wins over the job's own settings."""
        return None if self.default is None else self.chosen - self.default

    def as_dict(self) -> dict[str, Any]:
        """All of it with regret and gain, as ``tune.json`` and the tables have it."""
        return asdict(self) | {"regret": self.regret, "gain": self.gain}


def study_of(ranked: Sequence[tuple[Trial, float]], names: Sequence[str]) -> Study | None:
    """The study of a ranking; None without accuracies.

    Args:
        ranked: Of `ranking`.
        names: The scores of it, of `available`.
    """
    known = [(trial, score, trial.accuracy) for trial, score in ranked if trial.accuracy is not None]
    if not known or len(known) < len(ranked):
        return None
    accuracy_T = np.array([accuracy for _, _, accuracy in known])
    correlations = {name: _spearman([trial.scores[name] for trial, _, _ in known], accuracy_T) for name in names}
    own = [accuracy for trial, _, accuracy in known if not trial.settings]
    return Study(
        correlations=correlations | {COMBINED: _spearman([score for _, score, _ in known], accuracy_T)},
        chosen=float(accuracy_T[0]),
        oracle=float(accuracy_T.max()),
        default=own[0] if own else None,
        mean=float(accuracy_T.mean()),
        zero_shot=known[0][0].zero_shot,
    )


def _spearman(scores: Sequence[Any], accuracy_T: Floats) -> float | None:
    values = np.array(scores, dtype=np.float64)
    if len(values) < 3 or np.ptp(values) == 0 or np.ptp(accuracy_T) == 0:
        return None
    return float(spearmanr(values, accuracy_T).statistic)
