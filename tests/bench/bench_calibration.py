"""How far probabilities can be trusted that no review has checked, by temperature, on shifted feature sets.

    python -m tests.bench.bench_calibration --sets clip-like FOLDER whurs19

FOLDER holds feature sets of `feature_sets`. Each method learns without labels from each variant of a set, answers as
its guard says, and the answers are taken as ``raydapt threshold --precision`` takes them. Prints one table a group of
sets: the share taken, the share of right ones among them (mean, the worst tenth, the worst), both over cases in which
two percent of the images or more are taken, and how far the mean probability is from the accuracy.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from raydapt.data.shifts import shifted
from raydapt.review.calibration import Calibration, choose_threshold
from raydapt.review.population import right_shares
from tests.bench.bench_guard import folder_sets, learner
from tests.bench.bench_shifts import generated, whurs19
from tests.clip_like import FeatureSet

VARIANTS = ("as it is", "10:1", "half absent", "30 % open set", "distractors")
METHODS = ("zero_shot", "transduct", "cpl", "fpl", "fair")
TEMPERATURES = (1.0, 1.25, 1.5, 2.0)
PRECISION = 0.95
LEAST_SHARE = 0.02
_MOST = 800


def answers(features: FeatureSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What zero-shot and a run give together to each of the run's answers, and whether it is right, by case."""
    for variant in VARIANTS:
        case = shifted(variant, features.label_N.numpy(), 0)
        row_M, target_M = torch.from_numpy(case.row_M)[:_MOST], torch.from_numpy(case.target_M)[:_MOST]
        feature_MD, text_KD = features.feature_ND[row_M], features.text_CD[torch.from_numpy(case.class_K)]
        zero_MK = (features.scale * feature_MD @ text_KD.T).softmax(dim=1)
        for method in METHODS:
            kept_MK = zero_MK
            if method != "zero_shot":
                learned = learner(method, feature_MD, text_KD, features.scale)
                guarded = learned.verdict(zero_MK, feature_MD)
                if guarded.verdict == "zero-shot":
                    continue
                kept_MK = guarded.probabilities(zero_MK, learned.classify(feature_MD))
            (zero_M, zero_class_M), (kept_M, class_M) = zero_MK.max(dim=1), kept_MK.max(dim=1)
            class_RM = torch.stack([zero_class_M, class_M]).numpy()
            together_RM = right_shares(class_RM, torch.stack([zero_M, kept_M]).double().numpy(), len(text_KD))
            yield together_RM[1], (class_M == target_M).numpy()


def row(cases: list[tuple[np.ndarray, np.ndarray]], temperature: float) -> str:
    """One temperature over all cases, as a row of Markdown."""
    calibration = Calibration(slope=1 / temperature, offset=0.0, ceiling=1.0, answers=0)
    taken, right, gap = [], [], []
    for together_N, right_N in cases:
        probability_N = calibration.probabilities(together_N)
        least, kept, _ = choose_threshold(probability_N, PRECISION)
        taken.append(kept / len(right_N))
        gap.append(abs(probability_N.mean() - right_N.mean()))
        if taken[-1] >= LEAST_SHARE:
            right.append(right_N[probability_N >= least].mean())
    tenth, worst = np.quantile(right, 0.1), min(right)
    figures = [np.mean(taken), np.mean(right), tenth, worst, np.mean(gap)]
    return f"| {temperature:g} | " + " | ".join(f"{100 * figure:.1f}" for figure in figures) + f" | {len(right)} |"


def main() -> None:
    """Prints a table for each group of sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["clip-like"])
    torch.set_num_threads(1)
    for name in parser.parse_args().sets:
        found = {"clip-like": generated, "whurs19": whurs19}.get(name)
        sets = found() if found else folder_sets(Path(name))
        cases = [case for _, features in tqdm(list(sets), leave=False) for case in answers(features)]
        print(f"\n{name}, {len(cases)} cases\n")
        print("| temperature | taken, % | right among them, % | worst tenth, % | worst, % | off by, points | cases |")
        print("|---|---|---|---|---|---|---|")
        print("\n".join(row(cases, temperature) for temperature in TEMPERATURES), flush=True)


if __name__ == "__main__":
    main()
