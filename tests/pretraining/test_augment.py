"""The batched augmentation: shapes, ranges, determinism, and a few effects checked pixel by pixel."""

import pytest
import torch

from pretraining import augment


def some_images(count: int = 6, size_px: int = 48, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, size_px, size_px, generator=torch.Generator().manual_seed(1))


RECIPES = {
    "photos": (augment.augment_photos, 3),
    "aerial": (augment.augment_aerial, 3),
    "digits": (augment.augment_digits, 1),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seed", range(4))
def test_recipes_keep_shape_and_range(recipe: str, seed: int) -> None:
    change, channels = RECIPES[recipe]
    images = change(some_images(channels=channels), torch.Generator().manual_seed(seed), out_px=32)
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    assert images.min() >= -1e-4
    assert images.max() <= 1 + 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_generator_decides_everything(recipe: str) -> None:
    change, channels = RECIPES[recipe]
    first, again, other = (
        change(some_images(channels=channels), torch.Generator().manual_seed(seed), out_px=32) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_affine_without_freedom_is_the_identity() -> None:
    images = some_images(size_px=32)
    still = augment.affine(images, torch.Generator(), out_px=32, scale=(1.0, 1.0), aspect=0.0, degrees=0.0, flip=False)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=1e-5)


def test_affine_turns_by_quarters_and_mirrors_only() -> None:
    images = some_images(count=128, size_px=32)
    turned = augment.affine(
        images, torch.Generator().manual_seed(0), out_px=32, scale=(1.0, 1.0), aspect=0.0, degrees=0.0,
        quarter_turns=True,
    )  # fmt: skip
    seen = set()
    for image, result in zip(images, turned, strict=True):
        options = [torch.rot90(side, turns, (1, 2)) for side in (image, image.flip(2)) for turns in range(4)]
        distances = torch.stack([(option - result).abs().max() for option in options])
        assert distances.min() < 1e-4
        seen.add(int(distances.argmin()))
    assert len(seen) == 8


def test_sometimes_changes_only_the_drawn_images() -> None:
    images = some_images(count=200, size_px=4)
    inverted = augment.sometimes(images, 0.3, torch.Generator().manual_seed(0), augment.invert)
    changed = (inverted - images).abs().flatten(1).amax(1) > 0
    assert 30 < int(changed.sum()) < 90
    torch.testing.assert_close(inverted[changed], 1 - images[changed])


def test_low_resolution_keeps_the_mean_of_each_block() -> None:
    images = some_images(size_px=32)
    coarse = augment.low_resolution(images, 8, smooth=False)
    blocks = images.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    torch.testing.assert_close(coarse[:, :, ::4, ::4], blocks)


@pytest.mark.parametrize("radius", [1, 2])
def test_kuwahara_takes_the_calmest_square(radius: int) -> None:
    images = some_images(count=1, size_px=12)
    smooth = augment.kuwahara(images, radius)[0]
    image, gray, size = images[0], augment.to_gray(images)[0, 0], radius + 1
    for y in range(radius, 12 - radius):
        for x in range(radius, 12 - radius):
            corners = [(y - radius, x - radius), (y - radius, x), (y, x - radius), (y, x)]
            variances = [gray[t : t + size, s : s + size].var(unbiased=False) for t, s in corners]
            top, left = corners[int(torch.stack(variances).argmin())]
            expected = image[:, top : top + size, left : left + size].mean((1, 2))
            torch.testing.assert_close(smooth[:, y, x], expected, atol=1e-5, rtol=1e-4)


def test_edges_of_a_flat_image_are_zero_and_of_a_step_are_not() -> None:
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1.0
    found = augment.edges(step)[0, 0]
    assert found[:, :3].abs().max() == 0
    assert found[:, 3:5].min() > 1
