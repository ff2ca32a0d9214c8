import math

import pytest
import torch

from raydapt.errors import UserError
from raydapt.methods import scores
from raydapt.methods.class_prior import class_prior

NAMES = ("oak", "birch", "pine", "elm")


def test_levels_are_1_4_16_and_what_is_left_out_is_normal():
    found = class_prior({"oak": "common", "birch": "rare"}, NAMES)
    torch.testing.assert_close(found.share_C, torch.tensor([16, 1, 4, 4]).double() / 25)
    assert found.kind == "stated"
    assert found.known


def test_numbers_are_relative():
    found = class_prior({"oak": 30, "birch": 10, "pine": 60, "elm": 0}, NAMES)
    torch.testing.assert_close(found.share_C, torch.tensor([0.3, 0.1, 0.6, 0]).double())


def test_unknown_rewards_nothing_and_uniform_does():
    unknown, uniform = class_prior("unknown", NAMES), class_prior("uniform", NAMES)
    predicted_C = torch.tensor([0.7, 0.1, 0.1, 0.1])
    assert not unknown.known
    assert unknown.log_prior() is None
    assert unknown.score_reference() is None
    assert unknown.balance(predicted_C) is None
    assert unknown.contradiction(predicted_C, NAMES) is None
    torch.testing.assert_close(uniform.log_prior(), torch.full((4,), math.log(0.25)))
    assert uniform.balance(predicted_C) == pytest.approx(scores.class_balance(predicted_C[None].double()))
    torch.testing.assert_close(unknown.target(predicted_C), 0.5 * predicted_C + 0.125)
    torch.testing.assert_close(uniform.target(predicted_C), torch.full((4,), 0.25))


def test_balance_is_the_divergence_from_the_prior():
    found = class_prior({"oak": 1, "birch": 2, "pine": 3, "elm": 4}, NAMES)
    predicted = [0.4, 0.3, 0.2, 0.1]
    divergence = sum(p * math.log(p / q) for p, q in zip(predicted, [0.1, 0.2, 0.3, 0.4], strict=True))
    assert found.balance(torch.tensor(predicted)) == pytest.approx(1 - divergence / math.log(4), abs=1e-6)
    assert found.balance(found.share_C) == pytest.approx(1)


@pytest.mark.parametrize("per_class", [1, 3, 10, 37])
def test_quotas_sum_to_the_places_and_follow_the_shares(per_class):
    for stated in ("unknown", {"oak": "common", "birch": "rare"}, {"oak": 5, "birch": 3, "pine": 2, "elm": 0}):
        found = class_prior(stated, NAMES)
        quota_C = found.quotas(per_class)
        exact = [float(share) * per_class * 4 for share in found.share_C]
        for quota, wanted in zip(quota_C.tolist(), exact, strict=True):
            assert quota == 0 if wanted == 0 else quota >= 1
            assert abs(quota - wanted) <= 1
        raised = sum(1 for wanted in exact if 0 < wanted < 1)
        assert per_class * 4 <= quota_C.sum() <= per_class * 4 + raised
    assert class_prior("unknown", NAMES).quotas(per_class).tolist() == [per_class] * 4


def test_upper_quantiles():
    assert class_prior("unknown", NAMES).upper_quantiles(0.9).tolist() == pytest.approx([0.9] * 4)
    found = class_prior({"oak": 5, "birch": 3, "pine": 2, "elm": 0}, NAMES).upper_quantiles(0.9)
    assert found.tolist() == pytest.approx([0.8, 0.88, 0.92, 1.0])


def test_the_order_of_classes_does_not_matter():
    stated = {"oak": "common", "elm": "rare"}
    order = [2, 0, 3, 1]
    found = class_prior(stated, [NAMES[i] for i in order])
    assert found.share_C.tolist() == class_prior(stated, NAMES).share_C[order].tolist()


def test_a_class_that_is_said_to_be_absent_has_a_finite_log_prior():
    log_prior_C = class_prior({"oak": 1, "birch": 1, "pine": 1, "elm": 0}, NAMES).log_prior()
    assert log_prior_C[3] == pytest.approx(math.log(1e-6), abs=1e-3)


def test_a_contradiction_is_said_in_a_sentence():
    found = class_prior({"oak": "common", "birch": "rare"}, NAMES)
    assert found.contradiction(found.share_C, NAMES) is None
    said = found.contradiction(torch.tensor([0.1, 0.7, 0.1, 0.1]), NAMES)
    assert "'birch' was expected for 4% and is predicted for 70%" in said


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("equal", "neither unknown nor uniform"),
        ({}, "names no class"),
        ({"birhc": "rare"}, "did you mean 'birch'"),
        ({"ship": "rare"}, "the classes are oak, birch, pine, elm"),
        ({"oak": "often"}, "the level 'often'"),
        ({"oak": -1, "birch": 1, "pine": 1, "elm": 1}, "0 or more"),
        ({"oak": math.nan, "birch": 1, "pine": 1, "elm": 1}, "0 or more"),
        ({"oak": True, "birch": 1, "pine": 1, "elm": 1}, "0 or more"),
        ({"oak": 1, "birch": "rare"}, "levels for all, or numbers for all"),
        ({"oak": 1, "birch": 1}, "no number for 'pine' and 1 more"),
        ({"oak": 0, "birch": 0, "pine": 0, "elm": 0}, "at least one has to occur"),
    ],
)
def test_mistakes_are_told(stated, said):
    with pytest.raises(UserError, match=said):
        class_prior(stated, NAMES)


def test_of_some_classes_alone_it_is_renormalised():
    found = class_prior({"oak": 30, "birch": 10, "pine": 60, "elm": 0}, NAMES)
    torch.testing.assert_close(found.among(torch.tensor([1, 2])).share_C, torch.tensor([1, 6]).double() / 7)
    torch.testing.assert_close(found.among(torch.tensor([3])).share_C, torch.ones(1).double())
    assert found.among(torch.tensor([3])).known
    assert class_prior("unknown", NAMES).among(torch.tensor([0, 1])).places(5) == 5
    assert found.places(5).tolist() == [6, 2, 12, 0]


def test_weighed_probabilities_are_bayes_rule():
    found = class_prior({"oak": 30, "birch": 10, "pine": 60, "elm": 0}, NAMES)
    probability_BC = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 0.1, 0.9]])
    for row_C, weighed_C in zip(probability_BC.tolist(), found.weighed(probability_BC).tolist(), strict=True):
        joint = [p * share for p, share in zip(row_C, (0.3, 0.1, 0.6, 0.0), strict=True)]
        assert weighed_C == pytest.approx([value / sum(joint) for value in joint], abs=1e-6)
    assert class_prior("unknown", NAMES).weighed(probability_BC) is probability_BC


def test_mutual_information_is_greatest_where_the_mean_prediction_is_the_prior():
    share_C = torch.tensor([0.5, 0.25, 0.25])
    like_it, even = torch.eye(3)[[0, 0, 1, 2]], torch.eye(3)[[0, 1, 2]]
    most = scores.mutual_information(like_it, share_C)
    entropy = -sum(p * math.log(p) for p in share_C.tolist())
    assert most == pytest.approx(entropy / math.log(3), abs=1e-6)
    assert scores.mutual_information(even, share_C) < most
    for probability_NC in (like_it, even, torch.rand(9, 3).softmax(dim=1)):
        expected = scores.mutual_information(probability_NC)
        assert scores.mutual_information(probability_NC, torch.full((3,), 1 / 3)) == pytest.approx(expected, abs=1e-6)
