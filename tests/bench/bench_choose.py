"""Choosing among candidates with few answers, simulated: regret after 5 to 40 answers, and how often stopping is right.

    python -m tests.bench.bench_choose POOLS [--rules ...] [--seeds 5]

POOLS is a folder of `tests.bench.pools`; its labels are the reviewer. Regret: the accuracy of the best candidate less
that of the chosen one, in points, mean over pools and seeds. Prints a Markdown table.
"""

import argparse
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from raydapt.review.choosing import Chooser
from raydapt.review.estimates import Answers
from raydapt.review.population import Population
from tests.bench.pools import Pool, read_pools

AT = (0, 5, 10, 20, 40)


class Rule(Protocol):
    """What asks and chooses. The answers so far come in the order in which they were asked for."""

    def ask(self, answers: Answers) -> int: ...

    def best(self, answers: Answers) -> int: ...


def population_of(pool: Pool) -> Population:
    best = pool.probability_TNC.max(dim=2)
    return Population(
        id_N=tuple(str(n) for n in range(len(pool.label_N))),
        names=pool.candidates,
        classes=tuple(str(c) for c in range(pool.probability_TNC.shape[2])),
        class_RN=best.indices.numpy(),
        confidence_RN=best.values.double().numpy(),
    )


class Ours:
    def __init__(self, people: Population, pool: Pool, seed: int) -> None:
        self.chooser = Chooser(people, seed=seed)

    def ask(self, answers: Answers) -> int:
        return self.chooser.order(answers, 1)[0]

    def best(self, answers: Answers) -> int:
        return self.chooser.standing(answers).leader


class MostRight:
    """Images at random; the candidate with most of them right, of equals the one that more is expected of."""

    def __init__(self, people: Population, pool: Pool, seed: int, *, among: str = "disputed") -> None:
        self.people, self.generator, self.expected_R = people, np.random.default_rng(seed), Chooser(people).expected_R
        differ_N = 1 - np.array([((np.bincount(c) / len(c)) ** 2).sum() for c in people.class_RN.T])
        every_N = np.ones(len(differ_N))
        self.weight_N = {"all": every_N, "disputed": (differ_N > 0) * every_N, "disagreement": differ_N}[among]

    def ask(self, answers: Answers) -> int:
        weight_N = self.weight_N.copy()
        weight_N[answers.index_M] = 0
        return int(self.generator.choice(len(weight_N), p=weight_N / weight_N.sum()))

    def best(self, answers: Answers) -> int:
        right_RM = self.people.class_RN[:, answers.index_M] == answers.class_M
        counted_R = (right_RM / self.weight_N[answers.index_M]).sum(axis=1)
        return int((counted_R + 1e-6 * self.expected_R).argmax())


class ModelSelector:
    """Okanovic et al. (AISTATS 2025): one error rate for all, always the image with the largest information."""

    def __init__(self, people: Population, pool: Pool, seed: int, *, error: float = 0.25) -> None:
        self.people, self.error, self.chooser = people, error, Chooser(people)
        self.said_RDC = people.class_RN[:, self.chooser.disputed_D, None] == np.arange(len(people.classes))
        self.generator = np.random.default_rng(seed)

    def _log(self, answers: Answers) -> np.ndarray:
        right_RM = self.people.class_RN[:, answers.index_M] == answers.class_M
        log_R = np.log((1 - self.error) / self.error) * right_RM.sum(axis=1)
        return np.asarray(log_R - log_R.max())

    def ask(self, answers: Answers) -> int:
        left_D = np.flatnonzero(~np.isin(self.chooser.disputed_D, answers.index_M))
        posterior_R = np.exp(self._log(answers)) / np.exp(self._log(answers)).sum()
        rest = self.error / (len(self.people.classes) - 1)
        joint_RDC = np.where(self.said_RDC[:, left_D], 1 - self.error, rest) * posterior_R[:, None, None]
        of_answer_DC = joint_RDC.sum(axis=0)
        conditional_D = (joint_RDC * np.log(joint_RDC / of_answer_DC)).sum(axis=(0, 2))  # less H(best | answer)
        return int(
            self.chooser.disputed_D[left_D[(conditional_D + 1e-9 * self.generator.random(len(left_D))).argmax()]]
        )

    def best(self, answers: Answers) -> int:
        return int((self._log(answers) + 1e-6 * self.chooser.expected_R).argmax())


class Coda:
    """CODA (Kay et al., ICCV 2025), from its paper and public code: Dirichlet confusions, consensus prior, P(best).

    `rate` is what an answer adds to a candidate's confusion: 0.01 as published.
    """

    def __init__(self, people: Population, pool: Pool, seed: int, *, rate: float = 0.01) -> None:
        self.people, self.rate, self.done = people, rate, 0
        self.p_TNC = pool.probability_TNC.double().numpy()
        self.disputed_D, classes = Chooser(people).disputed_D, len(people.classes)
        confusion = np.einsum("nc,tnj->tcj", np.eye(classes)[self.p_TNC.mean(axis=0).argmax(axis=1)], self.p_TNC)
        confusion /= confusion.sum(axis=2, keepdims=True).clip(1e-6)
        base = np.full((classes, classes), 1 / (classes - 1))
        np.fill_diagonal(base, 1)
        self.dirichlet_TCC = 2.0 * (base + 0.1 * confusion)
        self.grid = torch.linspace(1e-6, 1 - 1e-6, 64)[:, None]

    def _learn(self, answers: Answers) -> tuple[np.ndarray, torch.Tensor]:
        """The classes of the images and their shares, once the new answers have been added."""
        for n, c in list(zip(answers.index_M, answers.class_M, strict=True))[self.done :]:
            self.dirichlet_TCC[np.arange(len(self.p_TNC)), c, self.people.class_RN[:, n]] += self.rate
        self.done = len(answers.index_M)
        class_NC = np.einsum("tcs,tns->nc", self.dirichlet_TCC, self.p_TNC, optimize=True)
        class_NC /= class_NC.sum(axis=1, keepdims=True)
        return class_NC, torch.tensor(class_NC.mean(axis=0)).float()

    def _curves(self, hit: float, miss: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Density and log cumulative of each class's accuracy, [C, T, grid], with answers added."""
        right = torch.tensor(np.einsum("tcc->ct", self.dirichlet_TCC)).float()
        wrong = torch.tensor(self.dirichlet_TCC.sum(axis=2).T).float() - right
        beta = torch.distributions.Beta((right + hit).reshape(-1), (wrong + miss).reshape(-1))
        density = beta.log_prob(self.grid).exp().T.reshape(*right.shape, -1)
        step = float(self.grid[1] - self.grid[0])
        cumulative = torch.cumulative_trapezoid(density, dx=step, dim=-1)
        return density, torch.cat([torch.zeros_like(density[..., :1]), cumulative], -1).clamp_min(1e-30).log()

    @staticmethod
    def _best(density: torch.Tensor, log_cumulative: torch.Tensor) -> torch.Tensor:
        rest = (log_cumulative.sum(-2, keepdim=True) - log_cumulative).exp()
        found = torch.trapezoid(density * rest, dim=-1)
        return found / found.sum(-1, keepdim=True).clamp_min(1e-30)

    def best(self, answers: Answers) -> int:
        share_C = self._learn(answers)[1]
        return int((share_C[:, None] * self._best(*self._curves(0, 0))).sum(0).argmax())

    def ask(self, answers: Answers) -> int:
        class_NC, share_C = self._learn(answers)
        before, hit, miss = self._best(*self._curves(0, 0)), self._curves(1, 0), self._curves(0, 1)
        mixture = (share_C[:, None] * before).sum(0)
        gains = []
        left = np.setdiff1d(self.disputed_D, answers.index_M)
        for n in left:
            right = torch.tensor(self.people.class_RN[:, n] == np.arange(len(share_C))[:, None])[..., None]
            after = self._best(*(torch.where(right, a, b) for a, b in zip(hit, miss, strict=True)))
            entropy_C = torch.special.entr((mixture + share_C[:, None] * (after - before)).clamp_min(1e-12)).sum(-1)
            gains.append(-float(torch.tensor(class_NC[n]).float() @ entropy_C))
        return int(left[int(np.argmax(gains))])


RULES = {
    "random": lambda people, pool, seed: MostRight(people, pool, seed, among="all"),
    "disputed": MostRight,
    "disagreement": lambda people, pool, seed: MostRight(people, pool, seed, among="disagreement"),
    "Model Selector": ModelSelector,
    "CODA": Coda,
    "CODA, whole answers": lambda people, pool, seed: Coda(people, pool, seed, rate=1.0),
    "ours": Ours,
}


def simulate(pool: Pool, rule: str, seed: int) -> tuple[list[float], tuple[int, float] | None]:
    """Regret after 0, 1, ... answers, and for our rule after how many it stopped with which regret."""
    people, accuracy_T = population_of(pool), pool.accuracies()
    one: Rule = RULES[rule](people, pool, seed)
    disputed = len(Chooser(people).disputed_D)
    regrets: list[float] = []
    asked: list[int] = []
    stopped = None
    for count in range(AT[-1] + 1):
        answers = Answers(index_M=np.array(asked, dtype=np.int64), class_M=pool.label_N.numpy()[asked])
        regrets.append(float(accuracy_T.max() - accuracy_T[one.best(answers)]))
        if stopped is None and isinstance(one, Ours) and count and one.chooser.standing(answers).settled:
            stopped = (count, regrets[-1])
        if count < min(disputed, AT[-1]):
            asked.append(one.ask(answers))
        else:
            break
    return regrets + regrets[-1:] * (AT[-1] + 1 - len(regrets)), stopped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path)
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pools = read_pools(given.pools)
    blind = np.mean([pool.accuracies().max() - pool.accuracies().mean() for pool in pools])
    print(f"{len(pools)} pools; regret of a blind draw {blind:.1f}\n")
    print("| rule | " + " | ".join(map(str, AT)) + " | worst pool, 20 | stopped | after | regret ≤ 1.0 |")
    print("|" + "---|" * (len(AT) + 5))
    for rule in given.rules:
        seeds = 1 if rule.startswith("CODA") else given.seeds  # which draws nothing
        found = [[simulate(pool, rule, seed) for seed in range(seeds)] for pool in pools]
        regret = np.array([np.mean([regrets for regrets, _ in of_pool], axis=0) for of_pool in found])
        stops = [stop for of_pool in found for _, stop in of_pool if stop]
        cells = [f"{regret[:, at].mean():.2f}" for at in AT] + [f"{regret[:, 20].max():.1f}"]
        cells += (
            [
                f"{100 * len(stops) / (len(pools) * seeds):.0f} %",
                f"{np.mean([stop[0] for stop in stops]):.0f}",
                f"{100 * np.mean([stop[1] <= 1.0 for stop in stops]):.0f} %",
            ]
            if stops
            else ["", "", ""]
        )
        print(f"| {rule} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
