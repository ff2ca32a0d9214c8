"""Simulated reviews: how often the 95 % interval holds the truth, how wide it is, against simple random sampling.

    python -m tests.bench.bench_review POOLS [--answers 60] [--reviews 200]

POOLS is a folder of `tests.bench.pools`, of which the ``mixed`` ones are taken; their labels are the reviewer.
Zero-shot and four runs of a pool are reviewed together. Prints a Markdown table: accuracies, of the stratified design
and of simple random sampling (Wilson's interval), the root mean square of the error in points, and how often the
interval of the difference to zero-shot and those of the class shares hold.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from raydapt.review.design import make_design
from raydapt.review.estimates import Answers, Estimate, Estimator
from raydapt.review.population import Population
from tests.bench.bench_choose import population_of
from tests.bench.pools import read_pools

RUNS = ("zero-shot", "transduct", "cpl cpl.alpha=0.75 cpl.rounds=10", "fpl fpl.shots=16", "grip grip.rounds=6")


@dataclass(kw_only=True)
class Held:
    """Intervals of one figure against its truth, over the reviews."""

    truth: float
    inside: list[bool] = field(default_factory=list)
    width: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)

    def add(self, value: float, low: float, high: float) -> None:
        self.inside.append(low - 1e-9 <= self.truth <= high + 1e-9)
        self.width.append(100 * (high - low))
        self.error.append(100 * (value - self.truth))

    def take(self, estimate: Estimate) -> None:
        self.add(estimate.value, estimate.low, estimate.high)

    @property
    def holds(self) -> float:
        """Percent of the reviews."""
        return 100 * float(np.mean(self.inside))

    @property
    def deviation(self) -> float:
        """Root mean square of the error, in points."""
        return float(np.sqrt(np.mean(np.square(self.error))))


def some(people: Population, names: tuple[str, ...]) -> Population:
    """The population of some answerers alone."""
    at = [people.names.index(name) for name in names]
    return replace(people, names=names, class_RN=people.class_RN[at], confidence_RN=people.confidence_RN[at])


def reviewed(people: Population, label_N: np.ndarray, answers: int, reviews: int) -> Iterator[list[str]]:
    """The cells of each answerer's line."""
    right_RN = people.class_RN == label_N
    truth_R = right_RN.mean(axis=1)
    ours, random = ([Held(truth=float(truth)) for truth in truth_R] for _ in range(2))
    over = [Held(truth=float(truth - truth_R[0])) for truth in truth_R]
    shares = [Held(truth=float((label_N == c).mean())) for c in range(len(people.classes))]
    for seed in range(reviews):
        design = make_design(people, seed=seed)
        estimator, index_M = Estimator(people, design), design.order_A[:answers]
        told = Answers(index_M=index_M, class_M=label_N[index_M])
        for r in range(len(truth_R)):
            ours[r].take(estimator.accuracy(told, r))
            over[r].take(estimator.difference(told, r, 0))
        for held, estimate in zip(shares, estimator.class_shares(told)[:-1], strict=True):
            held.take(estimate)
        drawn_M = np.random.default_rng([seed, 1]).permutation(len(label_N))[:answers]
        for r, held in enumerate(random):
            found = binomtest(int(right_RN[r, drawn_M].sum()), len(drawn_M))
            interval = found.proportion_ci(method="wilson")
            held.add(found.statistic, interval.low, interval.high)
    held_shares = f"{np.mean([held.holds for held in shares]):.1f}"
    for r, name in enumerate(people.names):
        wide, narrow = float(np.mean(random[r].width)), float(np.mean(ours[r].width))
        cells = [name.split()[0], f"{100 * truth_R[r]:.1f}", f"{ours[r].holds:.1f}", f"{narrow:.1f}", f"{wide:.1f}"]
        cells += [f"{narrow / wide:.2f}", f"{ours[r].deviation:.1f}", f"{random[r].deviation:.1f}"]
        yield [*cells, f"{over[r].holds:.1f}" if r else "", "" if r else held_shares]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path)
    parser.add_argument("--answers", type=int, default=60)
    parser.add_argument("--reviews", type=int, default=200)
    given = parser.parse_args()
    heads = ["set (images)", "answers of", "right %", "interval holds, %", "width", "width, random", "ratio", "error"]
    heads += ["error, random", "difference holds, %", "class shares hold, %"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for pool in read_pools(given.pools):
        if pool.name.endswith("--mixed"):
            people = some(population_of(pool), RUNS)
            place = f"{pool.name.split(',')[0]} ({len(pool.label_N)})"
            for cells in reviewed(people, pool.label_N.numpy(), given.answers, given.reviews):
                print("| " + " | ".join([place, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
