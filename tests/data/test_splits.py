import numpy as np
import pytest

from raydapt.data.named_sets import named_set
from raydapt.data.splits import divide, seen_unseen_classes
from raydapt.errors import UserError
from tests.data.published_splits import UNSEEN


@pytest.mark.parametrize(("name", "seed", "n_seen"), UNSEEN)
def test_published_splits(name: str, seed: int, n_seen: int) -> None:
    known = named_set(name)
    assert known is not None
    seen, unseen = seen_unseen_classes(len(known.class_names), seed)
    assert len(seen) == n_seen
    assert {known.grip_names[c] for c in unseen} == set(UNSEEN[name, seed, n_seen].strip().split("; "))
    assert sorted(seen + unseen) == list(range(len(known.class_names)))


def test_the_seen_classes_come_in_the_order_drawn() -> None:
    for seed in range(5):
        expected = np.random.RandomState(seed).choice(range(20), 12, replace=False)
        assert seen_unseen_classes(20, seed)[0] == tuple(expected)


@pytest.mark.parametrize(("n_classes", "share"), [(1, 0.62), (3, 1.0), (5, 0.1)])
def test_a_division_needs_both_sides(n_classes: int, share: float) -> None:
    with pytest.raises(UserError, match="seen_share"):
        seen_unseen_classes(n_classes, 0, share)


def test_ul_looks_at_no_label() -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(30) % 3)
    for labels in (np.arange(30) % 3, shuffled, None):
        split = divide("ul", labels, 3, n_images=30)
        assert split.labelled_L.size == 0
        np.testing.assert_array_equal(split.unlabelled_U, np.arange(30))
        assert split.candidate_classes == (0, 1, 2)


@pytest.mark.parametrize("seed", range(3))
def test_ssl_labels_some_of_each_class(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(-1, 4, 60)
    split = divide("ssl", labels, 4, shots=3, seed=seed)
    assert sorted([*split.labelled_L, *split.unlabelled_U]) == list(range(60))
    for c in range(4):
        assert sum(labels[i] == c for i in split.labelled_L) == 3
    again = divide("ssl", labels, 4, shots=3, seed=seed)
    np.testing.assert_array_equal(again.labelled_L, split.labelled_L)
    assert not np.array_equal(divide("ssl", labels, 4, shots=3, seed=seed + 1).labelled_L, split.labelled_L)
    few = divide("ssl", np.array([0, 1, 1, 1]), 2, shots=2)
    assert 0 in few.labelled_L
    assert few.labelled_L.size == 3


def test_trzsl_labels_the_seen_classes() -> None:
    labels = np.random.default_rng(0).integers(-1, 10, 200)
    split = divide("trzsl", labels, 10, split_seed=500, seed=3)
    expected = [i for i in range(200) if labels[i] in split.seen]
    assert list(split.labelled_L) == expected
    assert list(split.unlabelled_U) == [i for i in range(200) if i not in expected]
    assert split.candidate_classes == split.unseen == (1, 6, 7, 8)


def test_missing_labels_are_the_users_mistake() -> None:
    for paradigm in ("ssl", "trzsl"):
        for labels in (None, np.full(5, -1)):
            with pytest.raises(UserError, match=f"data.paradigm={paradigm}"):
                divide(paradigm, labels, 3)
    with pytest.raises(UserError, match="class number 2"):
        divide("ssl", np.array([0, 1]), 3)
    with pytest.raises(UserError, match="split_seed"):
        divide("trzsl", np.full(4, 8), 10, split_seed=500)
    with pytest.raises(ValueError, match="number of training images"):
        divide("ul", None, 3)
