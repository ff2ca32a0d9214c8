import math

import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.captions import captions_of
from raydapt.methods.latteclip.group_draw import GroupDraw
from raydapt.methods.latteclip.rules import (
    contrastive_loss,
    legacy_mixture,
    mixture,
    moved_prototypes,
    targets,
    text_weight,
)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_weights_are_the_two_best_cosines_apart_and_positive(n_classes):
    text, prototype = unit(3, 7, 6), unit(n_classes, 6, seed=1)
    weight = text_weight(text, prototype)
    for k in range(3):
        for b in range(7):
            cosines = sorted((float(text[k, b] @ p) for p in prototype), reverse=True)
            apart = cosines[0] - cosines[1] if n_classes > 1 else 0.0
            assert float(weight[k, b]) == pytest.approx(apart + 1e-6, abs=1e-6)
    assert bool((weight > 0).all())


@pytest.mark.parametrize("batch", [1, 7])
def test_mixture_weighs_every_sample_by_itself(batch):
    text, weight, fallback = unit(3, batch, 6), torch.rand(3, batch), unit(batch, 6, seed=2)
    weight[1, 0] = 0
    weight[:, -1] = 0
    mixed = mixture(text, weight, fallback)
    for b in range(batch):
        total = float(weight[:, b].sum())
        expected = fallback[b] if not total else sum(weight[k, b] * text[k, b] for k in range(3)) / total
        torch.testing.assert_close(mixed[b], expected)


def test_legacy_mixture_scales_feature_axes_with_the_other_branchs_weights():
    size = 6
    text, weight, fallback = unit(3, size, size), torch.rand(3, size), unit(size, size, seed=2)
    template_weight = torch.rand(size)
    mixed = legacy_mixture(text, weight, fallback, template_weight)
    for b in range(size):
        for d in range(size):
            summed = template_weight[d] * text[0, b, d] + weight[1, b] * text[1, b, d] + weight[2, b] * text[2, b, d]
            assert float(mixed[b, d]) == pytest.approx(float(summed / weight[:, b].sum()), rel=1e-5, abs=1e-6)
    same = mixture(text, torch.ones(3, size), fallback)
    torch.testing.assert_close(legacy_mixture(text, torch.ones(3, size), fallback, torch.ones(size)), same)
    with pytest.raises(RuntimeError):  # the published code runs where B = D alone
        legacy_mixture(text[:, :4], weight[:, :4], fallback[:4], template_weight[:4])


def test_loss_is_the_mean_of_both_directions():
    image, target, scale = unit(7, 6), unit(7, 6, seed=1), 12.0
    expected = 0.0
    for i in range(7):
        rows = [math.exp(scale * float(image[i] @ target[j])) for j in range(7)]
        columns = [math.exp(scale * float(image[j] @ target[i])) for j in range(7)]
        expected -= math.log(rows[i] / sum(rows)) + math.log(columns[i] / sum(columns))
    assert float(contrastive_loss(image, target, scale)) == pytest.approx(expected / 14, rel=1e-4)


def test_prototypes_are_the_normalised_means_of_their_classes_targets():
    prototype, target, label = unit(4, 6), torch.randn(9, 6), torch.tensor([0, 0, 1, 3, 3, 3, 0, 1, 1])
    total = torch.zeros(4, 6).index_add_(0, label, target)
    moved = moved_prototypes(prototype, total, label.bincount(minlength=4).float())
    for c in range(4):
        mine = [target[i] for i in range(9) if label[i] == c]
        torch.testing.assert_close(moved[c], F.normalize(sum(mine) / len(mine), dim=0) if mine else prototype[c])


def test_targets_move_by_alpha():
    own, mixed = unit(7, 6), unit(7, 6, seed=3)
    assert torch.equal(targets(own, mixed, 0.0), own)
    torch.testing.assert_close(targets(own, mixed, 0.01), 0.99 * own + 0.01 * mixed)


def test_captions_keep_first_lines_once_and_none_for_what_is_empty():
    hostile = ["<script>x</script>\nmore", None, "", "  \n\n 二 ", "a" * 10_000, "<script>x</script>"]
    captions = captions_of(hostile)
    assert captions.texts == ("<script>x</script>", "二", "a" * 10_000)
    assert captions.text_N.tolist() == [0, -1, -1, 1, 2, 0]
    assert captions_of([None, None]).text_N.tolist() == [-1, -1]


def test_a_group_caption_is_that_of_any_image_of_the_class_that_has_one():
    text = torch.tensor([5, -1, 6, 7, -1, 8, -1])
    class_ = torch.tensor([0, 0, 2, 0, 1, 2, 3])
    draw = GroupDraw(text, class_, 4)
    torch.manual_seed(0)
    drawn = torch.stack([draw.draw(torch.tensor([0, 1, 2, 3, 0])) for _ in range(60)])
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[5, 7], [-1], [6, 8], [-1], [5, 7]]
    nothing = GroupDraw(torch.full((3,), -1), torch.tensor([0, 1, 1]), 2)
    assert nothing.draw(torch.tensor([0, 1])).tolist() == [-1, -1]
