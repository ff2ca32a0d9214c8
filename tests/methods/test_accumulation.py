"""Gradients summed over parts of a batch: the same objective, or a refusal."""

import pytest
import torch

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.contract import Batch
from raydapt.methods.fair.method import TRAIN, Fair
from raydapt.methods.fair.settings import FairSettings
from raydapt.methods.latteclip.method import IMAGES
from raydapt.run.plan import make_plan
from raydapt.train.loop import _parts
from tests.methods.cases import CLASSES, training_images
from tests.methods.latteclip_cases import captioned_images, latteclip
from tests.models.tiny import SIDE_PX, tiny_clip

DIGITS = ["data.source=digits", "model.clip=mini", "train.gradient_accumulation=4"]
NO_CAPTIONS = ["latteclip.use_image_caption=false", "latteclip.use_batch_caption=false"]


def gradient(method, batches, n_parts):
    """The gradient of a batch in parts, as the loop sums it, end to end."""
    method.zero_grad()
    first = next(iter(batches))
    for part in _parts(batches, n_parts):
        share = len(part[first].index_B) / len(batches[first].index_B)
        torch.manual_seed(0)
        (method(part) * share).backward()
    return torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method=latteclip", *NO_CAPTIONS], "contrast"),
        (["method=fair"], "fair.fairness"),
        (["method=coreg"], "contrast, MixUp and batch norms"),
        (["method=grip", "data.paradigm=ssl"], "averaged apart"),
        (["method=air", "air.base=fpl", "data.paradigm=trzsl"], "averaged apart"),
    ],
)
def test_an_objective_over_the_whole_batch_is_refused_in_parts(overrides, reason):
    with pytest.raises(UserError, match=f"gradient_accumulation=4.*{reason}.*set it to 1"):
        make_plan(load_config(None, [*DIGITS, *overrides]))


@pytest.mark.parametrize(
    "overrides", [["method=grip"], ["method=cpl", "data.paradigm=ssl"], ["method=fair", "fair.fairness=0"]]
)
def test_means_over_images_may_be_cut(overrides):
    assert make_plan(load_config(None, [*DIGITS, *overrides])).config.train.gradient_accumulation == 4


@pytest.mark.parametrize(("fairness", "same"), [(0.0, True), (1.0, False)])
def test_fairness_alone_makes_fair_another_objective_in_parts(fairness, same):
    clip = tiny_clip()
    images = training_images(clip=clip, with_pixels=True)
    settings = FairSettings(anchor_text="names", crops=0, layer_norms=False, fairness=fairness, image_px=SIDE_PX)
    method = Fair(clip, CLASSES, images, settings=settings, batch_size=16)
    index = torch.arange(16)
    batches = {TRAIN: Batch(image_B=images.feature_ND[index], target_BC=torch.zeros(16, 0), index_B=index)}
    whole, parts = gradient(method, batches, 1), gradient(method, batches, 8)
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-6) == same


def test_latteclip_in_parts_is_another_objective():
    clip = tiny_clip()
    images = captioned_images(clip)
    method = latteclip(clip, images)
    method.enter_round(1, [])
    method.begin_epoch(1, 1, lambda function: torch.empty(0))
    index = torch.arange(16)
    batches = {
        IMAGES: Batch(image_B=images.take(index, method.input_kind), target_BC=torch.zeros(16, 0), index_B=index)
    }
    whole, parts = gradient(method, batches, 1), gradient(method, batches, 8)
    assert torch.cosine_similarity(whole, parts, dim=0) < 0.95
