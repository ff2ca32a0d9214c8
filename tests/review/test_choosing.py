"""Choosing among runs: against a naive loop, on simulated reviewers, and apart from the estimates."""

import math
from pathlib import Path

import numpy as np
import pytest

from raydapt.errors import UserError
from raydapt.review.choosing import AS_GOOD, Chooser
from raydapt.review.estimates import NONE, Answers
from raydapt.review.population import Population
from raydapt.review.session import FOR_CHOICE
from raydapt.verbs.review import open_review, results_of
from tests.review.runs import NAMES, make_run, spoil_zero_shot


def candidates(seed: int, right: list[float], *, n: int = 400, classes: int = 6) -> tuple[Population, np.ndarray]:
    """Candidates that share half of their errors, right as often as asked for, and the true classes."""
    generator = np.random.default_rng(seed)
    truth_N = generator.integers(0, classes, n)
    hardness_N, wrong_N = generator.random(n), (truth_N + generator.integers(1, classes, n)) % classes
    class_RN = []
    for share in right:
        hard_N = np.where(generator.random(n) < 0.5, hardness_N, generator.random(n))
        class_RN.append(np.where(hard_N < share, truth_N, wrong_N))
    truth_N = np.where(generator.random(n) < 0.03, NONE, truth_N)
    people = Population(
        id_N=tuple(f"{i:016x}" for i in range(n)),
        names=tuple(f"run {r}" for r in range(len(right))),
        classes=tuple(f"class {c}" for c in range(classes)),
        class_RN=np.array(class_RN),
        confidence_RN=np.full((len(right), n), 0.8),
    )
    return people, truth_N


def answered(index: list[int], truth_N: np.ndarray) -> Answers:
    return Answers(index_M=np.array(index, dtype=np.int64), class_M=truth_N[index].astype(np.int64))


def review(people: Population, truth_N: np.ndarray, seed: int, most: int) -> tuple[list[int], Chooser]:
    """Asks until it is settled or `most` were asked."""
    chooser, asked = Chooser(people, seed=seed), list[int]()
    while len(asked) < most and not chooser.standing(answered(asked, truth_N)).settled:
        asked.append(chooser.order(answered(asked, truth_N), 1)[0])
    return asked, chooser


def test_posterior_and_information_are_those_of_a_naive_loop() -> None:
    people, truth_N = candidates(0, [0.5, 0.7, 0.75], n=40)
    chooser = Chooser(people)
    answers = answered(chooser.order(answered([], truth_N), 6), truth_N)
    weights = []
    for r in range(3):
        log = 10 * float(chooser.expected_R[r])
        for n, c in zip(answers.index_M, answers.class_M, strict=True):
            others = len(set(people.class_RN[:, n]))  # the other candidates' classes and none of them
            log += math.log(0.5 if people.class_RN[r, n] == c else 0.5 / others) - math.log(0.5 / others)
        weights.append(math.exp(log))
    chance = [w / sum(weights) for w in weights]
    np.testing.assert_allclose(chooser.standing(answers).chance_R, chance)
    information = chooser.information(answers)
    for d, n in enumerate(chooser.disputed_D):
        said = sorted(set(people.class_RN[:, n]))
        told = 0.0
        for y in [*said, None]:
            given = [0.5 if people.class_RN[r, n] == y else 0.5 / len(said) for r in range(3)]
            total = sum(p * g for p, g in zip(chance, given, strict=True))
            told += sum(p * g * math.log(g / total) for p, g in zip(chance, given, strict=True))
        assert information[d] == pytest.approx(told, abs=1e-9)


def test_only_disputed_images_are_asked_about_and_each_once() -> None:
    people, truth_N = candidates(1, [0.6, 0.8], n=60)
    chooser, asked = Chooser(people), list[int]()
    while order := chooser.order(answered(asked, truth_N)):
        assert not set(order) & set(asked)
        assert order == chooser.order(answered(asked, truth_N))
        asked.append(order[0])
    assert sorted(asked) == np.flatnonzero(people.class_RN[0] != people.class_RN[1]).tolist()


def test_twenty_answers_choose_better_than_random_images() -> None:
    regrets, at_random = [], []
    for seed in range(24):
        people, truth_N = candidates(seed, [0.5, 0.62, 0.7, 0.72, 0.8, 0.82, 0.86])
        share_R = (people.class_RN == truth_N).mean(axis=1)
        asked, chooser = review(people, truth_N, seed, 20)
        regrets.append(share_R.max() - share_R[chooser.standing(answered(asked, truth_N)).leader])
        for draw in range(5):
            some = np.random.default_rng([seed, draw]).permutation(len(truth_N))[:20]
            most_right = (people.class_RN[:, some] == truth_N[some]).sum(axis=1).argmax()
            at_random.append(share_R.max() - share_R[most_right])
    assert np.mean(regrets) < 0.5 * np.mean(at_random)


def test_when_it_is_settled_the_choice_is_right() -> None:
    stops, lengths = [], []
    for seed in range(24):
        people, truth_N = candidates(seed, [0.5, 0.6, 0.65, 0.85])
        share_R = (people.class_RN == truth_N).mean(axis=1)
        asked, chooser = review(people, truth_N, seed, 60)
        end = chooser.standing(answered(asked, truth_N))
        if end.settled:
            stops.append(share_R.max() - share_R[end.leader] <= AS_GOOD)
            lengths.append(len(asked))
    assert len(stops) > 12
    assert np.mean(stops) >= 0.9
    assert 3 < np.mean(lengths) < 50


def test_runs_that_hardly_differ_are_settled_at_once() -> None:
    people, truth_N = candidates(2, [0.8, 0.8])
    twin = people.class_RN[0].copy()
    twin[:3] = (twin[:3] + 1) % 6
    people = Population(**{**vars(people), "class_RN": np.stack([people.class_RN[0], twin])})
    assert Chooser(people).standing(answered([], truth_N)).settled


@pytest.mark.slow
def test_answers_of_a_choice_stay_out_of_the_estimates_and_those_of_estimates_help_to_choose(tmp_path: Path) -> None:
    record = make_run(tmp_path, "transduct")
    spoil_zero_shot(record)
    opened = open_review([record.path], choose=True)
    disputed = opened.chooser.disputed_D.tolist()
    first = opened.next_id("me")
    assert opened.session.index_of[first] in disputed
    opened.give(first, "class", NAMES[opened.session.index_of[first] % 3], "me")
    plain = open_review([record.path])
    assert [answer.purpose for answer in plain.session.answers] == [FOR_CHOICE]
    assert (len(plain.session.told().index_M), plain.session.count()) == (0, 0)
    drawn = next(
        n for n in plain.session.design.order_A.tolist() if n in disputed and plain.population.id_N[n] != first
    )
    plain.give(plain.population.id_N[drawn], "none", None, "me")
    again = open_review([record.path], choose=True)
    assert len(again.session.told(None).index_M) == 2
    assert drawn not in again.chooser.order(again.session.told(None), 1000)
    assert "probability of being the best" in results_of([record.path], choose=True)
    assert record.read_json("review-choice.json")["answered"] == 1
    assert not record.exists("review-results.json")


def test_one_candidate_alone_is_refused(tmp_path: Path) -> None:
    record = make_run(tmp_path, "zero_shot")
    with pytest.raises(UserError, match="one candidate alone: give several runs, or a sweep"):
        open_review([record.path], choose=True)
