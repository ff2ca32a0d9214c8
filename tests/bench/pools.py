"""Pools of candidates: some twenty classifiers that learned from the same unlabelled images, zero-shot among them.

    python -m tests.bench.pools OUT --sets clip-like|whurs19|FOLDER [--only NAMES] [--kinds mixed cpl fair]

writes ``OUT/SET--KIND.pt``: probabilities of every candidate, features, classes, class embeddings. ``mixed`` has all
methods at several settings, as somebody would compare runs; the other kinds are sweeps of one method, at settings drawn
at random. The labels are for whoever measures a choice alone. FOLDER holds what `feature_sets` writes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raydapt.data.shifts import shifted
from tests.bench.bench_guard import adapted, folder_sets
from tests.bench.bench_shifts import generated, whurs19
from tests.clip_like import FeatureSet

KINDS = ("mixed", "cpl", "fair")
_TRIALS = 20
_MIXED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("transduct", ()),
    *(("cpl", (f"cpl.alpha={alpha}", f"cpl.rounds={rounds}")) for alpha in (0.6, 0.75, 0.95) for rounds in (3, 10)),
    *(("fpl", (f"fpl.shots={shots}",)) for shots in (4, 16, 48)),
    *(("grip", (f"grip.rounds={rounds}",)) for rounds in (3, 6)),
    *(("fair", (f"train.learning_rate={rate}", f"fair.fairness={fair}")) for rate in (0.001, 0.01) for fair in (0, 1)),
    *(("latteclip", (f"train.learning_rate={rate}",)) for rate in (0.0003, 0.001, 0.003)),
)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Candidates over the same images; zero-shot is the first. T candidates, N images, C classes, D width."""

    name: str
    candidates: tuple[str, ...]
    probability_TNC: Tensor
    label_N: Tensor
    feature_ND: Tensor

    def accuracies(self) -> np.ndarray:
        """Percent right of every candidate, [T]."""
        right_TN = self.probability_TNC.argmax(dim=2) == self.label_N
        return np.asarray(100 * right_TN.double().mean(dim=1))


def read_pools(folder: Path) -> list[Pool]:
    """The pools of a folder."""
    return [Pool(name=path.stem, **torch.load(path)) for path in sorted(folder.glob("*.pt"))]


def drawn(kind: str, generator: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """A trial of a sweep of one method."""
    rate = 10 ** generator.uniform(-3.5, -1.0) if kind == "fair" else 10 ** generator.uniform(-3, -0.3)
    settings = [f"train.learning_rate={rate:.4g}"]
    if kind == "cpl":
        alpha, beta = generator.uniform(0.5, 0.99, size=2)
        settings += [f"cpl.alpha={alpha:.3f}", f"cpl.beta={beta:.3f}", f"cpl.rounds={generator.choice([2, 3, 5])}"]
    else:
        settings.append(f"fair.fairness={generator.uniform(0, 2):.3f}")
        settings.append(f"fair.weighting={generator.choice(['agreement', 'margin', 'none'])}")
    return kind, tuple(settings)


def trials(kind: str, seed: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What the candidates beside zero-shot are."""
    if kind == "mixed":
        yield from _MIXED
    else:
        generator = np.random.default_rng(seed)
        for _ in range(_TRIALS - 1):
            yield drawn(kind, generator)


def make_pool(features: FeatureSet, kind: str, *, most: int, variant: str, seed: int) -> dict[str, object]:
    """Learns the candidates."""
    chosen = shifted(variant, features.label_N.numpy(), seed)
    row_M = torch.from_numpy(chosen.row_M)[:most]
    feature_MD, text_KD = features.feature_ND[row_M], features.text_CD[torch.from_numpy(chosen.class_K)]
    names, answers = ["zero-shot"], [(features.scale * feature_MD @ text_KD.T).softmax(dim=1)]
    for at, (method, settings) in enumerate(trials(kind, seed)):
        names.append(" ".join([method, *settings]))
        answers.append(adapted(method, feature_MD, text_KD, features.scale, settings=settings, seed=at))
    return {
        "candidates": tuple(names),
        "probability_TNC": torch.stack(answers),
        "label_N": torch.from_numpy(chosen.target_M)[:most],
        "feature_ND": feature_MD,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", required=True)
    parser.add_argument("--only", nargs="*", help="names of sets")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--variant", default="as it is")
    parser.add_argument("--most", type=int, default=600, help="images of a pool")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    known = {"clip-like": generated, "whurs19": whurs19}
    for name, features in known[given.sets]() if given.sets in known else folder_sets(Path(given.sets)):
        for kind in given.kinds if not given.only or name in given.only else ():
            path = given.output / f"{name}, {given.variant}--{kind}.pt"
            if not path.exists():
                torch.save(make_pool(features, kind, most=given.most, variant=given.variant, seed=given.seed), path)
                print(path.name, flush=True)


if __name__ == "__main__":
    main()
