"""What an image shows before any model, against arithmetic on its grey levels."""

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter

from raydapt.data.decode import ImageSpec, decode_image, decode_measured
from raydapt.data.measures import Measures
from raydapt.data.measures import measure as measure_
from tests.data.images import encode, noise


def photo(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    """Soft shapes with some noise."""
    coarse = noise(9, 6, seed=seed).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(coarse, noise(width, height, seed=seed + 1), 0.2)


def measure(image: Image.Image) -> Measures:
    return measure_(image, width=image.width, height=image.height)


def test_measures_are_those_of_the_grey_image() -> None:
    image = photo(60, 40)  # small enough to be taken as it is
    found = measure(image)
    grey = image.convert("L")
    level_HW = np.asarray(grey, dtype=np.float64)
    blurred_HW = np.asarray(grey.filter(ImageFilter.GaussianBlur(1)), dtype=np.float64)
    mean = sum(level_HW.ravel()) / level_HW.size
    assert found.aspect == pytest.approx(40 / 60)
    assert found.contrast == pytest.approx((sum((x - mean) ** 2 for x in level_HW.ravel()) / level_HW.size) ** 0.5)
    assert found.sharpness == pytest.approx(np.std(level_HW - blurred_HW) / np.std(level_HW), rel=1e-5)
    assert f"{found.phash:016x}" == str(imagehash.phash(grey))


def test_size_quality_and_brightness_keep_the_hash() -> None:
    image = photo(640, 480)
    for other in (image.resize((320, 240)), image.point(lambda level: min(255, int(1.1 * level)))):
        assert (measure(image).phash ^ measure(other).phash).bit_count() <= 4
    assert (measure(image).phash ^ measure(photo(seed=5)).phash).bit_count() > 12


def test_blur_shows_at_any_size() -> None:
    for width in (48, 640):
        image = noise(24, 18).resize((width, 3 * width // 4))
        assert measure(image.filter(ImageFilter.GaussianBlur(width // 12))).sharpness < measure(image).sharpness / 3


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
def test_the_smallest_and_the_longest_images_have_measures(size: tuple[int, int]) -> None:
    found = measure(Image.new("RGB", size, "white"))
    assert found.aspect == min(size) / max(size)
    assert (found.contrast, found.sharpness) == (0, 0)


def test_pixels_are_the_same_with_and_without_measures() -> None:
    spec, limits = ImageSpec(size_px=16), {"max_pixels": 10**6, "max_bytes": 10**6}
    data = encode(noise(33, 20))
    pixel_3SS, measures = decode_measured(data, spec, **limits)
    np.testing.assert_array_equal(pixel_3SS, decode_image(data, spec, **limits))
    assert measures.aspect == pytest.approx(20 / 33)
