"""Other ways to weigh the classifiers of ``fusion``, on development sets and their shifted variants.

    python -m tests.bench.bench_fusion --sets FOLDER clip-like --seeds 0 1

FOLDER holds feature sets of `feature_sets`. Every case learns the four classifiers once (`bench_guard`), and every way
then makes its student. Printed is the change of top-1 on the unlabelled images themselves, of what the run answers with
its guard: mean / mean of the losses (0 where nothing is lost) / worst.

Legend: M images of a case, K named classes, R classifiers.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq
from sklearn.metrics import cohen_kappa_score
from torch import Tensor
from tqdm import tqdm

from raydapt.data.shifts import shifted
from raydapt.methods.fusion.settings import FusionSettings
from raydapt.methods.guard import judge
from tests.bench.bench_features import markdown
from tests.bench.bench_guard import FUSED, folder_sets, learner, taught
from tests.bench.bench_shifted import halves
from tests.bench.bench_shifts import accuracy, generated
from tests.clip_like import FeatureSet

SHIFTS = ("as it is", "10:1", "50:1", "half absent", "5 present", "two classes", "30 % open set", "5 a class")
MOST = 600


@dataclass(frozen=True, kw_only=True)
class Case:
    """One unlabelled set, and what its classifiers say."""

    feature_MD: Tensor
    target_M: Tensor
    text_KD: Tensor
    scale: float
    raw_RMK: Tensor
    """Probabilities of the classifiers as adapted."""
    kept_RMK: Tensor
    """Those that their guards keep."""
    accepted_R: Tensor
    """Whether a guard keeps more than zero-shot."""
    transduct_MK: Tensor
    """What `transduct` answers with its guard."""

    def zero_shot(self) -> Tensor:
        """Zero-shot probabilities [M, K]."""
        return (self.scale * self.feature_MD @ self.text_KD.T).softmax(dim=1)


def make_case(features: FeatureSet, variant: str, seed: int) -> Case:
    """Draws the set and learns the classifiers."""
    pool, _ = halves(features, seed)
    drawn = shifted(variant, pool.label_N.numpy(), seed)
    rows = torch.from_numpy(drawn.row_M[:MOST])
    feature_MD, text_KD = pool.feature_ND[rows], features.text_CD[torch.from_numpy(drawn.class_K)]
    zero_MK = (features.scale * feature_MD @ text_KD.T).softmax(dim=1)
    raw, kept, accepted = [], [], []
    for method in (*FUSED, "transduct"):
        learned = learner(method, feature_MD, text_KD, features.scale, seed=seed)
        guarded, answer_MK = learned.verdict(zero_MK, feature_MD), learned.classify(feature_MD)
        raw.append(answer_MK)
        kept.append(guarded.probabilities(zero_MK, answer_MK))
        accepted.append(guarded.verdict != "zero-shot")
    return Case(
        feature_MD=feature_MD,
        target_M=torch.from_numpy(drawn.target_M[:MOST]),
        text_KD=text_KD,
        scale=features.scale,
        raw_RMK=torch.stack(raw[:-1]),
        kept_RMK=torch.stack(kept[:-1]),
        accepted_R=torch.tensor(accepted[:-1]),
        transduct_MK=kept[-1],
    )


def accepted_alone(case: Case) -> Tensor:
    """The mean of the classifiers that their guards keep; zero-shot where there is none."""
    return case.kept_RMK[case.accepted_R].mean(dim=0) if case.accepted_R.any() else case.zero_shot()


def by_agreement(case: Case) -> Tensor:
    """Weights are Cohen's kappa with the mean answer of the others."""
    class_RM = case.kept_RMK.argmax(dim=2)
    kappa = [cohen_kappa_score(class_RM[r], _others(case, r).argmax(dim=1)) for r in range(len(class_RM))]
    weight_R = torch.tensor(np.nan_to_num(kappa, nan=1.0)).clamp_min(1e-3).float()
    return torch.einsum("r,rmk->mk", weight_R / weight_R.sum(), case.kept_RMK)


def calibrated(case: Case) -> Tensor:
    """Each classifier is made as sure, on average, as it agrees with the mean answer of the others."""
    tempered = []
    for r, probability_MK in enumerate(case.kept_RMK):
        same = float((probability_MK.argmax(dim=1) == _others(case, r).argmax(dim=1)).double().mean())
        tempered.append(_as_sure_as(probability_MK, same))
    return torch.stack(tempered).mean(dim=0)


def _others(case: Case, r: int) -> Tensor:
    return (case.kept_RMK.sum(dim=0) - case.kept_RMK[r]) / (len(case.kept_RMK) - 1)


def _as_sure_as(probability_MK: Tensor, wanted: float) -> Tensor:
    """Temperature scaling (Guo et al., ICML 2017) until the mean confidence is `wanted`, as far as that goes."""
    log_MK = probability_MK.clamp_min(1e-9).log()

    def beyond(log_factor: float) -> float:
        return float((np.exp(log_factor) * log_MK).softmax(dim=1).amax(dim=1).mean()) - wanted

    low, high = np.log(0.05), np.log(20.0)
    if beyond(low) > 0 or beyond(high) < 0:
        return (np.exp(low if beyond(low) > 0 else high) * log_MK).softmax(dim=1)
    return (np.exp(brentq(beyond, low, high, xtol=1e-3)) * log_MK).softmax(dim=1)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a mean answer comes of the classifiers, and how the student learns it."""

    mean: Callable[[Case], Tensor]
    settings: FusionSettings = field(default_factory=FusionSettings)


def _guarded_mean(case: Case) -> Tensor:
    return case.kept_RMK.mean(dim=0)


WAYS: dict[str, Way] = {
    "mean of the guarded answers (kept)": Way(mean=_guarded_mean),
    "rejected ones left out": Way(mean=accepted_alone),
    "weights by agreement with the others": Way(mean=by_agreement),
    "calibrated by agreement with the others": Way(mean=calibrated),
    "`transduct` as a fifth": Way(mean=lambda case: torch.cat([case.kept_RMK, case.transduct_MK[None]]).mean(dim=0)),
    "unguarded answers": Way(mean=lambda case: case.raw_RMK.mean(dim=0)),
    "the student learns transduction's labels alone": Way(mean=_guarded_mean, settings=FusionSettings(transduction=1)),
    "the student is held a third as strongly": Way(mean=_guarded_mean, settings=FusionSettings(student_strength=0.1)),
}


def change(case: Case, way: Way) -> float:
    """Points of top-1 that the run gains, as `raydapt.methods.fusion.spec` makes and guards it."""
    student = taught(case.feature_MD, case.text_KD, case.scale, way.mean(case), way.settings)
    zero_MK, answer_MK = case.zero_shot(), student(case.feature_MD)
    kept_MK = judge(zero_MK, answer_MK, case.feature_MD).probabilities(zero_MK, answer_MK)
    return accuracy(kept_MK, case.target_M) - accuracy(zero_MK, case.target_M)


def rows(sets: Iterator[tuple[str, FeatureSet]], seeds: Sequence[int]) -> Iterator[dict[str, str]]:
    """A line for every way, with a column for each source of sets."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for source, features in tqdm(list(sets)):
        for variant, seed in ((variant, seed) for variant in SHIFTS for seed in seeds):
            case = make_case(features, variant, seed)
            for name, way in WAYS.items():
                found[name, source].append(change(case, way))
    sources = list(dict.fromkeys(source for _, source in found))
    for name in WAYS:
        cells = {f"{source} ({len(found[name, source])} cases)": _cell(found[name, source]) for source in sources}
        yield {"classifiers": name, **cells}


def _cell(changes: Sequence[float]) -> str:
    losses = np.minimum(changes, 0)
    return f"{np.mean(changes):+.1f} / {losses.mean():+.2f} / {losses.min():+.1f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=["clip-like"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    sources = chain.from_iterable(map(_sets, given.sets))
    sys.stdout.write(markdown(list(rows(sources, given.seeds))) + "\n")


def _sets(source: str) -> Iterator[tuple[str, FeatureSet]]:
    known = generated() if source == "clip-like" else folder_sets(Path(source))
    return ((Path(source).name, features) for _, features in known)


if __name__ == "__main__":
    main()
