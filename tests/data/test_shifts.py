import numpy as np
import pytest

from raydapt.data import shifts
from raydapt.data.shifts import VARIANTS, shifted

LABEL_N = np.repeat(np.arange(19), 53)[np.random.default_rng(0).permutation(19 * 53)]


def counts(found):
    return np.bincount(found.target_M[found.target_M >= 0], minlength=len(found.class_K))


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_name_the_rows_classes_and_draws_repeat(variant):
    found, again, other = (shifted(variant, LABEL_N, seed) for seed in (3, 3, 4))
    for row, target in zip(found.row_M, found.target_M, strict=True):
        if target >= 0:
            assert found.class_K[target] == LABEL_N[row]
        else:
            assert LABEL_N[row] not in found.class_K
    assert np.array_equal(found.row_M, again.row_M)
    assert not np.array_equal(found.row_M, other.row_M)
    assert np.array_equal(found.class_K, np.sort(found.class_K))
    if variant != "duplicates":
        assert len(set(found.row_M.tolist())) == len(found.row_M)
    if variant != "30 % open set":
        assert (found.target_M >= 0).all()


def test_shapes():
    assert len(shifted("as it is", LABEL_N, 0).row_M) == 19 * 53
    assert set(counts(shifted("5 a class", LABEL_N, 0))) == {5}
    assert (counts(shifted("half absent", LABEL_N, 0)) > 0).sum() == 10
    assert (counts(shifted("5 present", LABEL_N, 0)) > 0).sum() == 5
    assert (counts(shifted("distractors", LABEL_N, 0)) == 0).sum() == 5
    assert len(shifted("5 present", LABEL_N, 0).class_K) == 19


@pytest.mark.parametrize("ratio", [10, 50])
def test_a_long_tail_falls_geometrically(ratio):
    sorted_counts = np.sort(counts(shifted(f"{ratio}:1", LABEL_N, 1)))[::-1]
    expected = [max(1, round(53 * ratio ** (-k / 18))) for k in range(19)]
    assert sorted_counts.tolist() == expected


def test_balanced_takes_the_rarest_class_count():
    label_N = np.array([0] * 9 + [1] * 4 + [2] * 30)
    assert counts(shifted("balanced", label_N, 0)).tolist() == [4, 4, 4]


@pytest.mark.parametrize("seed", range(5))
def test_two_classes(seed):
    found = shifted("two classes", LABEL_N, seed)
    assert len(found.class_K) == 2
    assert 0.03 <= counts(found).min() / len(found.row_M) <= 0.12


@pytest.mark.parametrize("n_classes", [2, 3, 10, 19])
def test_the_share_of_open_set_images(n_classes):
    label_N = np.repeat(np.arange(n_classes), 40)
    found = shifted("30 % open set", label_N, 0)
    assert np.mean(found.target_M < 0) == pytest.approx(0.3, abs=0.02)
    assert len(found.class_K) == n_classes - min(max(1, round(n_classes * 0.3)), n_classes - 1)


def test_duplicates_stand_five_times():
    found = shifted("duplicates", LABEL_N, 0)
    times = np.bincount(found.row_M, minlength=len(LABEL_N))
    assert set(times) == {1, 5}
    assert (times == 5).sum() == round(0.3 * len(LABEL_N))


def test_the_order_of_classes_names_does_not_change_a_draw():
    found = shifts.few(LABEL_N + 100, np.random.default_rng(0))
    assert found.class_K.tolist() == list(range(100, 119))
