import pytest
import torch

from raydapt.methods.latteclip.outcome import caption_metrics, latteclip_metrics, wordings_of


def test_epochs_tell_shares_and_movement_of_those_that_were_learned():
    share = torch.zeros(4, 4)
    share[:2] = torch.tensor([[6.0, 3.0, 1.0, 10.0], [2.0, 2.0, 0.0, 4.0]])
    drift = torch.full((4, 2), torch.nan)
    drift[0], drift[1] = torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.6])
    told = latteclip_metrics({"share_EK": share, "drift_EC": drift}, ["cat", "dog"])
    assert [row["epoch"] for row in told["epochs"]] == [1, 2]
    assert told["epochs"][0] | {"drift": 0, "largest_drift": 0} == {
        "epoch": 1, "template": 0.6, "image": 0.3, "group": 0.1, "drift": 0, "largest_drift": 0,
    }  # fmt: skip
    assert told["epochs"][1]["drift"] == pytest.approx(0.4)
    assert told["epochs"][1]["largest_drift"] == pytest.approx(0.6)
    assert [row["class"] for row in told["classes"]] == ["cat", "dog"]
    nothing = latteclip_metrics({"share_EK": share * 0, "drift_EC": drift * torch.nan}, ["cat", "dog"])
    assert nothing == {"epochs": [], "classes": []}


@pytest.mark.parametrize(
    ("name", "caption", "named"),
    [
        ("sea or lake", "Two lakes seen from above.", True),
        ("sea or lake", "A river seen from above", False),
        ("annual crop land", "Annual CROPS in rows", True),
        ("annual crop land", "permanent crop land", False),
        ("3", "a bold three", True),
        ("3", "the digit 3, slanted", True),
        ("3", "33 of them", False),
        ("the", "the", True),
    ],
)
def test_a_caption_names_a_class_when_all_words_of_a_wording_occur(name, caption, named):
    told = caption_metrics([caption, None, ""], torch.tensor([0, 0, 0]), [name])
    assert (told["captions"], told["missing"]) == (1, 2)
    assert told["name_class"] == told["name_any"] == (100.0 if named else 0.0)
    assert all(wordings_of(name))


def test_naming_another_class_is_told_apart():
    told = caption_metrics(["a cat", "a dog", "nothing"], torch.tensor([0, 0, 1]), ["cat", "dog"])
    assert told["name_class"] == pytest.approx(100 / 3)
    assert told["name_any"] == pytest.approx(200 / 3)
    assert caption_metrics([None], torch.tensor([0]), ["cat"])["name_any"] is None
