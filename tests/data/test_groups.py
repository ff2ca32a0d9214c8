import numpy as np

from raydapt.data.groups import draw_groups

CLASS_N = np.array([0, 1, 0, -1, 0, 0, 1, 0, 2, 0], dtype=np.int64)
IDS = [f"{i:016x}" for i in range(len(CLASS_N))]


def test_groups_are_of_the_images_class_without_replacement_if_there_are_four():
    group_N4 = draw_groups(CLASS_N, IDS, seed=0)
    for class_, group in zip(CLASS_N, group_N4, strict=True):
        if class_ < 0:
            assert (group == -1).all()
            continue
        assert (CLASS_N[group] == class_).all()
        if (class_ == CLASS_N).sum() >= 4:
            assert len(set(group.tolist())) == 4


def test_groups_depend_on_the_image_and_the_seed_and_on_no_other_class():
    group_N4 = draw_groups(CLASS_N, IDS, seed=0)
    others = np.where(CLASS_N == 0, 0, -1)
    again = draw_groups(others, IDS, seed=0)
    assert (again[CLASS_N == 0] == group_N4[CLASS_N == 0]).all()
    assert (draw_groups(CLASS_N, IDS, seed=1) != group_N4).any()
    assert len({tuple(group) for group in group_N4[CLASS_N == 0].tolist()}) > 1


def test_every_member_is_drawn_equally_often():
    class_N = np.zeros(2000, dtype=np.int64)
    class_N[8:] = -1
    class_N[1000:] = 0
    counts = np.bincount(draw_groups(class_N, [f"{i:016x}" for i in range(2000)], seed=3)[class_N == 0].ravel())
    drawn = counts[class_N[: len(counts)] == 0]
    assert drawn.sum() == 4 * 1008
    assert drawn.max() < 20  # mean 4
