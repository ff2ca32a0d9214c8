"""Which images `raydapt evaluate` measures, and which classes count as seen."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from raydapt.artefacts.features import FeatureTable
from raydapt.data.splits import seen_unseen_classes
from raydapt.errors import UserError
from raydapt.run.prediction import _seen_and_unseen, _test_rows
from raydapt.settings.config import Config
from raydapt.settings.groups import DataSettings


def table(splits):
    n = len(splits)
    return FeatureTable(
        row_N=torch.arange(n),
        id_N=[str(i) for i in range(n)],
        split_N=splits,
        path_N=[f"{i}.png" for i in range(n)],
        error_N=[None] * n,
        feature_ND=torch.zeros(n, 2),
        valid_N=torch.ones(n, dtype=torch.bool),
    )


NONE = torch.empty(0, dtype=torch.int64)
CONFIG = Config(data=DataSettings(source="photos/"))


def test_test_images_are_measured_and_those_without_a_split():
    assert _test_rows(CONFIG, table(["train", "test", None, "val"]), NONE).tolist() == [1, 2]


def test_the_runs_own_images_stand_in_where_it_has_no_test_images():
    assert _test_rows(CONFIG, table(["train", "val", "train"]), torch.tensor([0, 2])).tolist() == [0, 2]


def test_other_images_without_test_splits_are_not_measured_as_a_whole():
    with pytest.raises(UserError, match=r"data.test_splits=.*'photos/' has no such image, but the splits train, val"):
        _test_rows(CONFIG, table(["train", "val"]), NONE)


@pytest.mark.parametrize(
    ("paradigm", "names", "known"), [("trzsl", "abcdefgh", True), ("ul", "abcdefgh", False), ("trzsl", "abc", False)]
)
def test_trzsl_has_seen_and_unseen_classes_among_the_runs_own(paradigm, names, known):
    data = replace(CONFIG.data, paradigm=paradigm, class_names=list("abcdefgh"))
    plan = SimpleNamespace(classes=SimpleNamespace(names=tuple(names)))
    found = _seen_and_unseen(SimpleNamespace(learned=replace(CONFIG, data=data), plan=plan))
    expected = seen_unseen_classes(8, data.split_seed, data.seen_share) if known else (None, None)
    assert tuple(found) == tuple(expected)
