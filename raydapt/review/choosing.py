"""Choosing among runs with few answers: which image tells the candidates apart, and when one of them is ahead.

Where all candidates say the same, an answer says nothing about which is best: only disputed images are asked about. The
posterior over which candidate is the best takes the best one to be right on a disputed image with probability 1/2, and
every other of its k alternatives (the classes that the others give, and none of them) with 1 / 2k,

    log P(r best) = 10 (what the candidates together expect r to have right) + sum_{answered} (log k if r is right),

the noisy oracle of Model Selector (Okanovic et al., AISTATS 2025) and Model Picker (Karimi et al., AISTATS 2021), with
the consensus of the candidates as prior (after CODA, Kay et al., ICCV 2025). An image is drawn with probability
proportional to the third power of the mutual information between its answer and the best candidate. Drawing is ours:
always taking the largest one misleads where few are right. So are 1/2, the prior's weight, and the rule of stopping:
the candidates that differ from the leader on at most 1 % of the images have, together, 95 % of the posterior with
likelihoods to the power 0.6, since errors go together. All were chosen on development pools (docs/review.md).

Images that were asked about for this are no random sample: estimates never use them.

Legend: N images, D disputed ones, R candidates, G alternatives.
"""

from dataclasses import dataclass

import numpy as np

from raydapt.review.estimates import LEVEL, Answers
from raydapt.review.population import Floats, Indices, Population, consensus

AS_GOOD = 0.01
"""Candidates that differ from the leader on no larger share of the images count as the leader."""
_RIGHT = 0.5
_PRIOR_ANSWERS = 10.0
_SHARPNESS = 3.0
_DOUBT = 0.6
_MOST_DISPUTED = 4000


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the answers say about the candidates.

    Attributes:
        chance_R: Probability of being the best.
        leader: The candidate with the largest one; of equals the one that more was expected of.
        sure: Probability that the leader, or one that hardly differs from it, is the best, as the stopping rule has it.
    """

    chance_R: Floats
    leader: int
    sure: float

    @property
    def settled(self) -> bool:
        """Whether to stop."""
        return self.sure >= LEVEL


class Chooser:
    """Chooses among the answerers of a population; what needs every image is computed once."""

    def __init__(self, population: Population, *, seed: int = 0) -> None:
        self.population, self._seed = population, seed
        class_RN = population.class_RN
        disputed_D = np.flatnonzero((class_RN != class_RN[0]).any(axis=0))
        if len(disputed_D) > _MOST_DISPUTED:
            disputed_D = np.sort(np.random.default_rng(seed).choice(disputed_D, _MOST_DISPUTED, replace=False))
        self.disputed_D: Indices = disputed_D
        self._place_of = {int(n): d for d, n in enumerate(disputed_D)}
        _, right_RN = consensus(population)
        self.expected_R: Floats = right_RN[:, disputed_D].mean(axis=1) if len(disputed_D) else right_RN.mean(axis=1)
        given = [np.unique(class_RN[:, n], return_inverse=True) for n in disputed_D]
        self._alternatives = [classes for classes, _ in given]
        self._others_D = np.array([len(classes) for classes in self._alternatives], dtype=np.float64)
        most = int(self._others_D.max(initial=0)) + 1
        said_RD = np.stack([which for _, which in given], axis=1) if given else np.empty((len(class_RN), 0), np.int64)
        self._said_RDG = said_RD[..., None] == np.arange(most)
        self._exists_DG = np.arange(most) <= self._others_D[:, None]

    def standing(self, answers: Answers) -> Standing:
        """Where the candidates stand."""
        prior_R = _PRIOR_ANSWERS * self.expected_R
        told_R = np.zeros(len(prior_R))
        for index, class_ in zip(answers.index_M.tolist(), answers.class_M.tolist(), strict=True):
            if index in self._place_of:
                right_R = self.population.class_RN[:, index] == class_
                told_R += right_R * np.log(self._others_D[self._place_of[index]])
        chance_R = _normalized(prior_R + told_R)
        leader = int(np.lexsort((self.expected_R, chance_R.round(9)))[-1])
        class_RN = self.population.class_RN
        like_R = (class_RN != class_RN[leader]).mean(axis=1) <= AS_GOOD
        sure = float(_normalized(_DOUBT * (prior_R + told_R))[like_R].sum())
        return Standing(chance_R=chance_R, leader=leader, sure=sure)

    def order(self, answers: Answers, count: int = 24) -> list[int]:
        """The images to ask about next, drawn without replacement; the same answers give the same ones."""
        asked = set(answers.index_M.tolist())
        open_D = np.array([d for d, n in enumerate(self.disputed_D.tolist()) if n not in asked], dtype=np.int64)
        information_D = self.information(answers)[open_D]
        # The largest of log weight + Gumbel noise are a weighted draw without replacement (Efraimidis & Spirakis 2006).
        noise_D = np.random.default_rng([self._seed, len(asked)]).gumbel(size=len(open_D))
        key_D = _SHARPNESS * np.log(np.maximum(information_D, 1e-12)) + noise_D
        chosen: list[int] = self.disputed_D[open_D[np.argsort(-key_D, kind="stable")[:count]]].tolist()
        return chosen

    def information(self, answers: Answers) -> Floats:
        """Mutual information of each disputed image's answer and the best candidate, [D], in nats."""
        chance_R = self.standing(answers).chance_R
        hit_R1, miss_R1 = (chance_R * _RIGHT)[:, None, None], (chance_R * (1.0 - _RIGHT))[:, None, None]
        joint_RDG = np.where(self._said_RDG, hit_R1, miss_R1 / self._others_D[:, None]) * self._exists_DG
        information_D: Floats = _entropy(chance_R) + _entropy(joint_RDG.sum(axis=0), 1) - _entropy(joint_RDG, (0, 2))
        return information_D


def _normalized(log_R: Floats) -> Floats:
    weight_R = np.exp(log_R - log_R.max())
    chance_R: Floats = weight_R / weight_R.sum()
    return chance_R


def _entropy(probability: Floats, axis: int | tuple[int, ...] | None = None) -> Floats:
    entropy: Floats = -(probability * np.log(np.maximum(probability, 1e-300))).sum(axis=axis)
    return entropy
