import numpy as np
import pytest
from PIL import Image

from raydapt.data.canvas import canvas_sides, shrink, tile_group

COLOURS = ("red", "lime", "blue", "white")


def group(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for size, colour in zip(sizes, COLOURS, strict=True)]


def test_large_images_get_the_canvas_of_the_paper():
    images = group((500, 300), (326, 326), (1000, 2000), (900, 900))
    canvas = tile_group(images)
    assert canvas.size == (672, 672)
    pixel_HW3 = np.asarray(canvas)
    assert (pixel_HW3[:, 326:346] == 0).all()
    assert (pixel_HW3[326:346] == 0).all()
    assert tuple(pixel_HW3[163, 163]) == (255, 0, 0)
    # 500 x 300 in a cell of 326: the width fills it, the height keeps the aspect and stands in the middle
    red_H = (pixel_HW3[:326, 163] == (255, 0, 0)).all(axis=1)
    assert red_H.sum() == round(326 * 300 / 500)
    assert abs(int(np.flatnonzero(red_H)[0]) - (326 - red_H.sum()) // 2) <= 1


def test_small_images_keep_their_own_size():
    images = group((64, 64), (64, 64), (64, 64), (64, 64))
    canvas = tile_group(images)
    assert canvas.size == (132, 132)
    assert canvas_sides(images, None, 0) == (128, 0)
    for place, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))):
        left, top = (place % 2) * 68, (place // 2) * 68
        assert canvas.crop((left, top, left + 64, top + 64)).getcolors() == [(64 * 64, colour)]


@pytest.mark.parametrize(("canvas", "gap", "sides"), [(336, None, (336, 10)), (336, 0, (336, 0)), (672, 40, (672, 40))])
def test_given_sides_are_kept(canvas, gap, sides):
    images = group((8, 8), (8, 8), (8, 8), (8, 8))
    assert canvas_sides(images, canvas, gap) == sides
    assert tile_group(images, canvas, gap).size == (canvas, canvas)


def test_a_group_is_four():
    with pytest.raises(ValueError, match="4 images"):
        tile_group(group((8, 8), (8, 8), (8, 8), (8, 8))[:3])


def test_only_larger_images_shrink():
    assert shrink(Image.new("RGB", (300, 100)), 150).size == (150, 50)
    image = Image.new("RGB", (30, 10))
    assert shrink(image, 150) is image
