import pytest
import torch

from raydapt.models.views import crop_view, light_view, square_boxes, strong_view, whole_view
from tests.models.tiny import pixels


def test_the_whole_view_of_the_models_size_is_the_image_itself():
    image = pixels(3)
    assert torch.equal(whole_view(image, 32), image.float())
    assert whole_view(image, 16).shape == (3, 3, 16, 16)


def test_boxes_are_squares_within_the_image_and_follow_the_generator():
    def boxes(seed):
        return square_boxes(200, 8, (0.5, 0.9), torch.Generator().manual_seed(seed))

    box = boxes(0)
    side = box[..., 2:] - box[..., :2]
    torch.testing.assert_close(side[..., 0], side[..., 1])
    assert float(side.min()) >= 0.5 - 1e-6
    assert float(side.max()) <= 0.9 + 1e-6
    assert float(box.min()) >= 0
    assert float(box.max()) <= 1 + 1e-6
    assert torch.equal(box, boxes(0))
    assert not torch.equal(box, boxes(1))


def test_a_crop_is_the_average_of_the_pixels_that_it_covers():
    image = pixels(2)
    box = torch.tensor([[[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5]], [[0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0]]])
    crops = crop_view(image, box, 8)
    for i in range(2):
        for k in range(2):
            x1, y1, x2, y2 = (round(float(v) * 32) for v in box[i, k])
            part = image[i, :, y1:y2, x1:x2].float()
            step = part.shape[-1] // 8
            mean = part.unfold(1, step, step).unfold(2, step, step)
            # two samples a side of an output pixel: all pixels where it covers 2 x 2 of them, else the middle ones
            mean = mean[..., step // 2 - 1 : step // 2 + 1, step // 2 - 1 : step // 2 + 1] if step == 2 else None
            if mean is not None:
                torch.testing.assert_close(crops[2 * i + k], mean.mean((-1, -2)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("flip", [True, False])
def test_the_strong_view_is_decided_by_the_seed_and_keeps_the_range(flip):
    image = pixels(20)

    def view(seed):
        torch.manual_seed(seed)
        return strong_view(image, 16, least_area=0.3, flip=flip)

    first = view(0)
    assert first.shape == (20, 3, 16, 16)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 255
    assert torch.equal(first, view(0))
    assert not torch.equal(first, view(1))


def test_a_light_view_is_nearly_the_whole_image_in_other_colours_or_none():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(400, 3, 1, 1, generator=generator).mul(200).add(20).expand(-1, -1, 32, 32)  # one colour each
    torch.manual_seed(0)
    view = light_view(smooth.to(torch.uint8), 16)
    assert view.shape == (400, 3, 16, 16)
    assert float(view.min()) >= 0
    assert float(view.max()) <= 255
    assert float((view - view.mean((2, 3), keepdim=True)).abs().max()) < 0.5  # a part of one colour has one colour
    colour = view.mean((2, 3))
    grey = (colour.max(1).values - colour.min(1).values) < 0.5
    same = (colour - smooth[..., 0, 0].floor()).abs().max(1).values < 0.5
    assert 0.14 < float(grey.float().mean()) < 0.26
    assert 0.10 < float(same.float().mean()) < 0.22  # neither jittered nor grey: 0.2 * 0.8
    ramp = torch.arange(32.0).mul(8).expand(50, 3, 32, 32).to(torch.uint8)
    edges = light_view(ramp, 32)[:, :, :, [0, -1]].mean((1, 2))
    plain = edges[(edges[:, 1] - edges[:, 0]).argmax()]
    assert plain[1] - plain[0] > 0.85 * 240
    torch.manual_seed(3)
    first = light_view(ramp, 32)
    torch.manual_seed(3)
    assert torch.equal(first, light_view(ramp, 32))
