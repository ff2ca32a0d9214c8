"""Other ways to weigh the classifiers of ``fusion``, on development sets and their shifted variants.

    python -m tests.bench.bench_fusion --sets FOLDER clip-like --seeds 0 1

FOLDER holds feature sets of `feature_sets`. Every case learns the four classifiers once (`bench_guard`), and every way
then makes its student. Printed is the change of top-1 on the unlabelled images themselves, of what the run answers with
its guard: mean / mean of the losses (0 where nothing is lost) / worst; and of each source's worst variant the mean.

Legend: M images of a case, K named classes, R classifiers.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq
from sklearn.metrics import cohen_kappa_score
from torch import Tensor
from tqdm import tqdm

from raydapt.data.shifts import VARIANTS, shifted
from raydapt.methods.fusion.settings import FusionSettings
from raydapt.methods.guard import judge, neighbourhood_of
from raydapt.methods.scores import agreement, cluster_agreement, clusters, neighbours_vote
from tests.bench.bench_features import markdown
from tests.bench.bench_guard import FUSED, folder_sets, fused_of, learner, taught
from tests.bench.bench_shifted import halves
from tests.bench.bench_shifts import accuracy, generated
from tests.clip_like import FeatureSet

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
    fused_RMK: Tensor
    """Those that ``fusion.answers=auto`` takes."""
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
    learned = [learner(method, feature_MD, text_KD, features.scale, seed=seed) for method in (*FUSED, "transduct")]
    raw = [one.classify(feature_MD) for one in learned]
    guarded = [one.verdict(zero_MK, feature_MD) for one in learned]
    kept = [one.probabilities(zero_MK, answer_MK) for one, answer_MK in zip(guarded, raw, strict=True)]
    accepted = [one.verdict != "zero-shot" for one in guarded]
    return Case(
        feature_MD=feature_MD,
        target_M=torch.from_numpy(drawn.target_M[:MOST]),
        text_KD=text_KD,
        scale=features.scale,
        raw_RMK=torch.stack(raw[:-1]),
        kept_RMK=torch.stack(kept[:-1]),
        fused_RMK=torch.stack(fused_of(zero_MK, raw[:-1], guarded[:-1], "auto")),
        accepted_R=torch.tensor(accepted[:-1]),
        transduct_MK=kept[-1],
    )


def accepted_alone(case: Case) -> Tensor:
    """The mean of the classifiers that their guards keep; zero-shot where there is none."""
    return case.kept_RMK[case.accepted_R].mean(dim=0) if case.accepted_R.any() else case.zero_shot()


def by_agreement(case: Case) -> Tensor:
    """Weights are Cohen's kappa with the mean answer of the others."""
    class_RM = case.fused_RMK.argmax(dim=2)
    kappa = [cohen_kappa_score(class_RM[r], _others(case, r).argmax(dim=1)) for r in range(len(class_RM))]
    return _weighted(case, torch.tensor(np.nan_to_num(kappa, nan=1.0)).clamp_min(1e-3).float())


def by_reliability(case: Case) -> Tensor:
    """Weights: kappa with the others, times that with the neighbours, times mutual information with clusters."""
    class_RM, n_classes = case.fused_RMK.argmax(dim=2), len(case.text_KD)
    neighbour_MK = neighbourhood_of(case.feature_MD).index_SK
    cluster_M = clusters(case.feature_MD, n_classes)
    weights = []
    for r, class_M in enumerate(class_RM):
        kappa = agreement(class_M, _others(case, r).argmax(dim=1), n_classes)
        alike = agreement(class_M, neighbours_vote(case.fused_RMK[r], neighbour_MK), n_classes)
        weights.append(max(1e-3, kappa) * max(1e-3, alike) * max(1e-3, cluster_agreement(class_M, cluster_M)))
    return _weighted(case, torch.tensor(weights, dtype=torch.float32))


def calibrated(case: Case) -> Tensor:
    """Each classifier is made as sure, on average, as it agrees with the mean answer of the others."""
    tempered = []
    for r, probability_MK in enumerate(case.fused_RMK):
        same = float((probability_MK.argmax(dim=1) == _others(case, r).argmax(dim=1)).double().mean())
        tempered.append(_as_sure_as(probability_MK, same))
    return torch.stack(tempered).mean(dim=0)


def _weighted(case: Case, weight_R: Tensor) -> Tensor:
    mean_MK: Tensor = torch.einsum("r,rmk->mk", weight_R / weight_R.sum(), case.fused_RMK)
    return mean_MK


def _others(case: Case, r: int) -> Tensor:
    return (case.fused_RMK.sum(dim=0) - case.fused_RMK[r]) / (len(case.fused_RMK) - 1)


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


def _fused_mean(case: Case) -> Tensor:
    return case.fused_RMK.mean(dim=0)


WAYS: dict[str, Way] = {
    "adapted answers unless one does harm (kept)": Way(mean=_fused_mean),
    "guarded answers": Way(mean=lambda case: case.kept_RMK.mean(dim=0)),
    "those alone that their guards do not reject": Way(mean=accepted_alone),
    "adapted answers": Way(mean=lambda case: case.raw_RMK.mean(dim=0)),
    "kept, weights by agreement with the others": Way(mean=by_agreement),
    "kept, weights by agreement, neighbours and clusters": Way(mean=by_reliability),
    "kept, calibrated by agreement with the others": Way(mean=calibrated),
    "kept, `transduct` as a fifth": Way(
        mean=lambda case: torch.cat([case.fused_RMK, case.transduct_MK[None]]).mean(dim=0)
    ),
    "kept, a quarter of transduction": Way(mean=_fused_mean, settings=FusionSettings(transduction=0.25)),
    "kept, transduction's labels alone": Way(mean=_fused_mean, settings=FusionSettings(transduction=1)),
    "kept, the student held a third as strongly": Way(mean=_fused_mean, settings=FusionSettings(student_strength=0.1)),
}


def change(case: Case, way: Way) -> float:
    """Points of top-1 that the run gains, as `raydapt.methods.fusion.spec` makes and guards it."""
    student = taught(case.feature_MD, case.text_KD, case.scale, way.mean(case), way.settings)
    zero_MK, answer_MK = case.zero_shot(), student(case.feature_MD)
    kept_MK = judge(zero_MK, answer_MK, case.feature_MD).probabilities(zero_MK, answer_MK)
    return accuracy(kept_MK, case.target_M) - accuracy(zero_MK, case.target_M)


def rows(sets: Iterator[tuple[str, FeatureSet]], seeds: Sequence[int]) -> Iterator[dict[str, str]]:
    """A line for every way, with a column for each source of sets."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for source, features in tqdm(list(sets)):
        for variant, seed in ((variant, seed) for variant in VARIANTS for seed in seeds):
            case = make_case(features, variant, seed)
            for name, way in WAYS.items():
                found[name, source][variant].append(change(case, way))
    sources = list(dict.fromkeys(source for _, source in found))
    for name in WAYS:
        yield {"classifiers": name, **{source: _cell(found[name, source]) for source in sources}}


def _cell(by_variant: Mapping[str, Sequence[float]]) -> str:
    changes = np.concatenate(list(by_variant.values()))
    losses, lowest = np.minimum(changes, 0), min(np.mean(some) for some in by_variant.values())
    return f"{changes.mean():+.1f} / {losses.mean():+.2f} / {losses.min():+.1f}; {lowest:+.1f} ({len(changes)} cases)"


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
