"""Which images are asked about: every image of a stratum is as likely as any other at every place of the order."""

import numpy as np
import pytest

from raydapt.review.design import STRATA, difficulty, make_design, simple_design
from raydapt.review.population import Population, consensus
from tests.review.populations import population


def test_every_beginning_gives_each_stratum_as_many_questions() -> None:
    people, _ = population(0)
    design = make_design(people, seed=7)
    for count in (5, 13, 60, 200):
        counts = np.bincount(design.stratum_N[design.order_A[:count]], minlength=STRATA)
        assert counts.max() - counts.min() <= 1
    assert sorted(design.order_A.tolist()) == list(range(800))


def test_each_image_of_a_stratum_is_equally_likely_to_be_among_the_first() -> None:
    people, _ = population(0, n=100)
    first_N = np.zeros(100)
    for seed in range(400):
        design = make_design(people, seed=seed)
        first_N[design.order_A[:20]] += 1
    for h in range(STRATA):
        share_M = first_N[design.stratum_N == h] / 400
        expected = 4 / len(share_M)
        spread = (expected * (1 - expected) / 400) ** 0.5
        assert np.abs(share_M - expected).max() < 4.5 * spread


def test_unsure_images_and_those_on_which_runs_differ_are_asked_for_more() -> None:
    people, _ = population(0, strength=6.0)
    asked_N = np.zeros(800)
    for seed in range(50):
        asked_N[make_design(people, seed=seed).order_A[:60]] += 1
    differ_N = people.class_RN[0] != people.class_RN[1]
    unsure_N = people.confidence_RN.mean(axis=0) < 0.6
    assert asked_N[differ_N].mean() > 1.4 * asked_N[~differ_N].mean()
    assert asked_N[unsure_N].mean() > 1.4 * asked_N[~unsure_N].mean()
    _, right_RN = consensus(people)
    assert difficulty(right_RN).max() / difficulty(right_RN).min() < 1.9


def test_the_seed_alone_decides() -> None:
    people, _ = population(0)
    one, same, other = (make_design(people, seed=seed).order_A for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_order_runs_through_classes() -> None:
    people, _ = population(0, strength=6.0)
    design = make_design(people, seed=1)
    assert len(np.unique(people.class_RN[1, design.order_A[:24]])) == 8


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_images_are_all_asked_about(n: int) -> None:
    people, _ = population(0, n=n)
    assert sorted(make_design(people, seed=0).order_A.tolist()) == list(range(n))


def test_images_of_one_kind_are_one_stratum() -> None:
    people = Population(
        id_N=tuple("abcd"),
        names=("zero-shot",),
        classes=("x", "y"),
        class_RN=np.zeros((1, 4), dtype=np.int64),
        confidence_RN=np.full((1, 4), 0.9),
    )
    assert len(make_design(people, seed=0).order_A) == 4
    assert simple_design(4, seed=0).stratum_N.tolist() == [0, 0, 0, 0]


def test_a_single_class_has_no_others_to_spread_over() -> None:
    people = Population(
        id_N=("a",),
        names=("zero-shot",),
        classes=("x",),
        class_RN=np.zeros((1, 1), dtype=np.int64),
        confidence_RN=np.ones((1, 1)),
    )
    class_N, right_RN = consensus(people)
    assert (class_N.tolist(), right_RN.tolist()) == ([0], [[1.0]])
