import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as vision

from raydapt.data import augment
from raydapt.data.augment import (
    Augmentation,
    crop_and_mirror,
    cut_out,
    published_operation,
    quarter_turn,
    random_operation,
)

PLAIN = Augmentation(
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    padding_px=2,
    mirror=True,
    quarter_turns=True,
    magnitude=5,
    cutout_px=6,
)


def pixels(n=24, side=12, seed=0):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_plain_normalises_each_channel():
    image = PLAIN.plain(pixels(2))
    naive = (pixels(2)[1, 2, 3, 4].item() / 255 - 0.3) / 0.3
    assert image[1, 2, 3, 4].item() == pytest.approx(naive, abs=1e-5)


def test_a_crop_is_a_window_of_the_padded_image_at_its_own_place():
    pixel = pixels()
    cropped = crop_and_mirror(pixel, 2, mirror=True)
    places = set()
    for before, after in zip(pixel.numpy(), cropped.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)))
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if np.array_equal(padded[:, top : top + 12, left : left + 12][..., :: -1 if flip else 1], after)
        ]
        assert found
        places.add(found[0])
    assert len(places) > 10
    assert torch.equal(crop_and_mirror(pixel, 0, mirror=False), pixel)


def test_a_quarter_turn_is_one_of_four():
    seen = set()
    for before, after in zip(pixels(), quarter_turn(pixels()), strict=True):
        seen.add(next(k for k in range(4) if torch.equal(torch.rot90(before, k, (1, 2)), after)))
    assert seen == {0, 1, 2, 3}


def test_a_hole_is_a_square_around_a_pixel():
    for image in cut_out(torch.ones(30, 3, 12, 12), 6):
        holes = (image[0] == 0).nonzero()
        assert 9 <= len(holes) <= 36
        extent = holes.max(0).values - holes.min(0).values + 1
        assert int(extent.prod()) == len(holes)
        assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_an_operation_does_to_a_group_what_it_does_to_each_image(strength):
    pixel = pixels(8)
    sign_B = torch.tensor([1.0, -1.0] * 4)
    for operation in augment._OPERATIONS:
        together = operation(pixel, sign_B, strength)
        one_by_one = torch.cat([operation(pixel[i : i + 1], sign_B[i : i + 1], strength) for i in range(8)])
        assert torch.equal(together, one_by_one)
        assert together.dtype == torch.uint8
        assert together.shape == pixel.shape


def test_operations_agree_with_torchvision():
    pixel = pixels(1, side=16)
    up = torch.ones(1)
    factor = 1 + 0.9 * 0.5
    pairs = [
        (augment._OPERATIONS[6], vision.adjust_brightness(pixel, factor)),
        (augment._OPERATIONS[7], vision.adjust_contrast(pixel, factor)),
        (augment._OPERATIONS[8], vision.adjust_saturation(pixel, factor)),
        (augment._OPERATIONS[5], vision.rotate(pixel, 15.0)),
        (augment._OPERATIONS[2], vision.equalize(pixel)),
    ]
    for operation, expected in pairs:
        difference = (operation(pixel, up, 0.5).float() - expected.float()).abs()
        assert difference.median() <= 1.0
    assert torch.equal(augment._OPERATIONS[5](pixel, up, 0.0), pixel)


def test_views_are_a_function_of_the_seed_and_keep_the_shape():
    views = []
    for _ in range(2):
        torch.manual_seed(5)
        views.append(PLAIN.strong(pixels()))
    assert torch.equal(*views)
    assert views[0].shape == (24, 3, 12, 12)
    assert not torch.equal(PLAIN.strong(pixels()), views[0])
    assert not torch.equal(random_operation(pixels(), 0.5), pixels())


def test_everything_switched_off_is_the_plain_image():
    off = dataclasses.replace(PLAIN, padding_px=0, mirror=False, quarter_turns=False, magnitude=0.0, cutout_px=0)
    assert torch.equal(off.strong(pixels()), off.plain(pixels()))
    assert torch.equal(off.weak(pixels()), off.plain(pixels()))


def test_published_operations_have_the_published_ranges(monkeypatch):
    """FixMatch's list: factors of 0.05 to 0.95 alone, so no image gets brighter; degrees drawn for every image."""
    image = torch.full((400, 3, 8, 8), 200, dtype=torch.uint8)
    monkeypatch.setattr(augment, "_OPERATIONS", (augment._BLENDS[0],))  # brightness
    torch.manual_seed(0)
    factor_B = published_operation(image)[:, 0, 0, 0].double() / 200
    assert 0.04 < factor_B.min() < 0.1
    assert 0.9 < factor_B.max() < 0.96
    assert abs(float(factor_B.mean()) - 0.5) < 0.03
    strengths = []
    operation = lambda pixel, sign_M, strength: strengths.append(float(sign_M) * strength) or pixel  # noqa: E731
    monkeypatch.setattr(augment, "_OPERATIONS", (operation,))
    published_operation(image)
    assert min(strengths) < -0.95
    assert max(strengths) > 0.95
    assert abs(sum(strengths) / 400) < 0.1


def test_a_random_hole_has_a_side_of_its_own_up_to_half_of_the_image():
    torch.manual_seed(0)
    holes_B = (cut_out(torch.ones(600, 3, 16, 16), "random")[:, 0] == 0).sum((1, 2)).tolist()
    assert min(holes_B) == 0
    assert 49 <= max(holes_B) <= 64
    assert len(set(holes_B)) > 10
