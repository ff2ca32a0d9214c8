"""Augmentation of whole batches as tensor operations: geometry, colour, resolution, and drawing styles.

Every function takes float images in [0, 1], a CPU generator that decides everything, and returns the same kind of
images; per-image decisions are tensors of coefficients, never Python branches.

Shapes: ``N`` images, ``C`` channels, ``H``/``W`` pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

GRAY = (0.299, 0.587, 0.114)


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """``count`` uniform draws shaped [N, 1, 1, 1]."""
    return (torch.rand(count, generator=generator) * (high - low) + low).view(-1, 1, 1, 1)


def to_gray(images_NCHW: Tensor) -> Tensor:
    """Luma as images_N1HW."""
    weights = images_NCHW.new_tensor(GRAY).view(1, 3, 1, 1)
    return (images_NCHW * weights).sum(1, keepdim=True)


def sometimes(
    images_NCHW: Tensor, probability: float, generator: torch.Generator, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Applies ``change`` to a random subset, each image with ``probability``."""
    chosen = (torch.rand(len(images_NCHW), generator=generator) < probability).nonzero().squeeze(1)
    if len(chosen) == 0:
        return images_NCHW
    return images_NCHW.index_copy(0, chosen, change(images_NCHW[chosen]))


def affine(
    images_NCHW: Tensor,
    generator: torch.Generator,
    *,
    out_px: int,
    scale: tuple[float, float],
    aspect: float = 0.25,
    degrees: float = 10.0,
    shear: float = 0.0,
    shift: float | None = None,
    flip: bool = True,
    quarter_turns: bool = False,
    elastic: float = 0.0,
    padding: str = "reflection",
) -> Tensor:
    """Random crop, scale, rotation, shear and flip in one resampling.

    Args:
        images_NCHW: Source images of any size.
        generator: Decides everything.
        out_px: Side of the result.
        scale: Range of the visible window's side as a share of the source's (log-uniform); above 1 zooms out.
        aspect: Log-range of the window's aspect ratio.
        degrees: Largest rotation, either way.
        shear: Largest shear coefficient, either way.
        shift: Largest offset as a share of the source; None keeps the window inside the source.
        flip: Whether to mirror half of the images.
        quarter_turns: Whether to turn by multiples of 90 degrees.
        elastic: Amplitude of a smooth random displacement, as a share of the source.
        padding: How `grid_sample` fills what lies outside.
    """
    count = len(images_NCHW)

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    side = torch.exp(draw(math.log(scale[0]), math.log(scale[1])))
    stretch = torch.exp(draw(-aspect, aspect) / 2)
    width, height = side * stretch, side / stretch
    room_x = (1 - width).clamp(min=0) if shift is None else torch.full_like(width, shift)
    room_y = (1 - height).clamp(min=0) if shift is None else torch.full_like(height, shift)
    angle = draw(-degrees, degrees) * math.pi / 180
    if quarter_turns:
        angle = angle + torch.randint(4, (count,), generator=generator) * (math.pi / 2)
    mirror = 1 - 2 * (torch.rand(count, generator=generator) < 0.5).float() if flip else torch.ones(count)
    lean = draw(-shear, shear)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta_N23 = torch.stack(
        [
            torch.stack([mirror * width * cos, mirror * width * (lean * cos - sin), draw(-1, 1) * room_x], 1),
            torch.stack([height * sin, height * (lean * sin + cos), draw(-1, 1) * room_y], 1),
        ],
        1,
    )
    grid_NHW2 = F.affine_grid(theta_N23, [count, 1, out_px, out_px], align_corners=False)
    if elastic > 0:
        knots = torch.randn(count, 2, 4, 4, generator=generator) * elastic
        bent = F.interpolate(knots, size=(out_px, out_px), mode="bicubic", align_corners=True)
        grid_NHW2 = grid_NHW2 + bent.permute(0, 2, 3, 1)
    return F.grid_sample(images_NCHW, grid_NHW2, padding_mode=padding, align_corners=False)


def colour_jitter(images_NCHW: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """Per-channel gain, gamma, contrast, saturation and brightness; ``strength`` 0 changes nothing."""
    count, s = len(images_NCHW), strength
    gain_NC11 = 1 + (torch.rand(count, 3, 1, 1, generator=generator) - 0.5) * 0.6 * s
    gamma = torch.exp(uniform(count, -0.4, 0.4, generator) * s)
    images = (images_NCHW.clamp(1e-3, 1) ** gamma) * gain_NC11
    gray = to_gray(images)
    images = gray + (images - gray) * (1 + uniform(count, -0.9, 0.8, generator) * s)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + uniform(count, -0.6, 0.6, generator) * s)
    return (images + uniform(count, -0.25, 0.25, generator) * s).clamp(0, 1)


def haze(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Blends towards one dark, rather blue-green veil per image and weakens contrast, as seen from orbit."""
    count = len(images_NCHW)
    veil_NC11 = torch.rand(count, 3, 1, 1, generator=generator) * images_NCHW.new_tensor([0.35, 0.4, 0.45]).view(
        1, 3, 1, 1
    )
    veil_NC11 = veil_NC11 + 0.1
    return torch.lerp(images_NCHW, veil_NC11.expand_as(images_NCHW), uniform(count, 0.1, 0.7, generator))


def grayscale(images_NCHW: Tensor) -> Tensor:
    """Removes colour."""
    return to_gray(images_NCHW).expand_as(images_NCHW).contiguous()


def low_resolution(images_NCHW: Tensor, size_px: int, *, smooth: bool = True) -> Tensor:
    """Averages down to ``size_px`` squares and scales back up."""
    small = F.interpolate(images_NCHW, size=(size_px, size_px), mode="area")
    mode = "bicubic" if smooth else "nearest"
    return F.interpolate(small, size=images_NCHW.shape[-2:], mode=mode).clamp(0, 1)


def blur(images_NCHW: Tensor) -> Tensor:
    """A 3 x 3 box blur."""
    return F.avg_pool2d(F.pad(images_NCHW, (1, 1, 1, 1), mode="replicate"), 3, 1)


def noise(images_NCHW: Tensor, generator: torch.Generator, *, most: float = 0.12) -> Tensor:
    """Gaussian noise with a standard deviation of up to ``most``."""
    sigma = uniform(len(images_NCHW), 0, most, generator)
    return (images_NCHW + torch.randn(images_NCHW.shape, generator=generator) * sigma).clamp(0, 1)


def cut_out(images_NCHW: Tensor, generator: torch.Generator, *, most: float = 0.5) -> Tensor:
    """Covers one rectangle per image, with sides of up to ``most`` of the image, by a flat random colour."""
    count, _, height, width = images_NCHW.shape
    half_y, half_x = (uniform(count, 0.1, most, generator) / 2 for _ in range(2))
    at_y, at_x = (uniform(count, 0, 1, generator) for _ in range(2))
    rows = torch.linspace(0, 1, height).view(1, 1, -1, 1)
    columns = torch.linspace(0, 1, width).view(1, 1, 1, -1)
    covered = ((rows - at_y).abs() < half_y) & ((columns - at_x).abs() < half_x)
    return torch.where(covered, torch.rand(count, 3, 1, 1, generator=generator), images_NCHW)


def kuwahara(images_NCHW: Tensor, radius: int) -> Tensor:
    """Edge-preserving smoothing: each pixel takes the mean of the calmest of its four neighbouring squares."""
    size = radius + 1
    padded = F.pad(images_NCHW, (radius, radius, radius, radius), mode="replicate")
    mean = F.avg_pool2d(padded, size, 1)
    gray = to_gray(padded)
    variance = F.avg_pool2d(gray * gray, size, 1) - F.avg_pool2d(gray, size, 1) ** 2
    height, width = images_NCHW.shape[-2:]
    corners = [(y, x) for y in (0, radius) for x in (0, radius)]
    calm, best = variance[..., :height, :width], mean[..., :height, :width]
    for y, x in corners[1:]:
        other = variance[..., y : y + height, x : x + width]
        better = other < calm
        calm = torch.where(better, other, calm)
        best = torch.where(better, mean[..., y : y + height, x : x + width], best)
    return best


def edges(images_NCHW: Tensor) -> Tensor:
    """Sobel gradient magnitude of the luma, as edges_N1HW, about 0 to 2."""
    kernel = images_NCHW.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 2
    both = torch.stack([kernel, kernel.T]).unsqueeze(1)
    gradient = F.conv2d(F.pad(to_gray(images_NCHW), (1, 1, 1, 1), mode="replicate"), both)
    return gradient.square().sum(1, keepdim=True).sqrt()


def flat_background(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Replaces what is coloured like the border by one flat colour, half of the time white."""
    count = len(images_NCHW)
    border = torch.cat([images_NCHW[..., :3, :].flatten(2), images_NCHW[..., :2].flatten(2)], 2).mean(2)
    distance = (images_NCHW - border[..., None, None]).square().sum(1, keepdim=True).sqrt()
    flat = torch.where(
        uniform(count, 0, 1, generator) < 0.5,
        torch.ones(1),
        torch.rand(count, 3, 1, 1, generator=generator),
    )
    likeness = torch.sigmoid((uniform(count, 0.1, 0.35, generator) - distance) * 30)
    return torch.lerp(images_NCHW, flat.expand_as(images_NCHW), likeness)


def cartoon(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Draws photos like cartoons: flat saturated areas of few tones, dark outlines, often a plain background."""
    count = len(images_NCHW)
    smooth = kuwahara(kuwahara(images_NCHW, 2), 1)
    lines = edges(smooth)
    gray = to_gray(smooth)
    vivid = (gray + (smooth - gray) * uniform(count, 1.0, 3.0, generator)).clamp(0, 1)
    contrast, brightness = uniform(count, 1.0, 1.8, generator), uniform(count, -0.1, 0.2, generator)
    vivid = (0.5 + (vivid - 0.5) * contrast + brightness).clamp(0, 1)
    vivid = sometimes(vivid, 0.4, generator, lambda some: flat_background(some, generator))
    tones = torch.randint(2, 8, (count, 1, 1, 1), generator=generator).float()
    posterised = (vivid * tones).round() / tones
    ink = (lines * uniform(count, 0.0, 6.0, generator) - uniform(count, 0.1, 0.6, generator)).clamp(0, 1)
    return posterised * (1 - ink)


def line_drawing(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Keeps only dark outlines on white paper, over a faint rest of the picture."""
    count = len(images_NCHW)
    smooth = kuwahara(images_NCHW, 1)
    ink = (edges(smooth) * uniform(count, 2.0, 7.0, generator) - 0.2).clamp(0, 1)
    paper = torch.lerp(torch.ones_like(images_NCHW), images_NCHW, uniform(count, 0.0, 0.3, generator))
    return paper * (1 - ink)


def invert(images_NCHW: Tensor) -> Tensor:
    """Negative."""
    return 1 - images_NCHW


def resample_some(
    images_NCHW: Tensor, generator: torch.Generator, *, sizes_px: Sequence[int], probability: float
) -> Tensor:
    """Lowers the resolution of a random subset: one size for all that are drawn at the same turn."""
    for _ in range(2):
        size = sizes_px[int(torch.randint(len(sizes_px), (1,), generator=generator))]
        smooth = bool(torch.rand(1, generator=generator) < 0.7)
        coarsen = partial(low_resolution, size_px=size, smooth=smooth)
        images_NCHW = sometimes(images_NCHW, probability / 2, generator, coarsen)
    return images_NCHW


def augment_photos(images_NCHW: Tensor, generator: torch.Generator, *, out_px: int) -> Tensor:
    """Photos: crops, colours, styles; about one in six stays nearly as it is."""
    images = affine(images_NCHW, generator, out_px=out_px, scale=(0.5, 1.05), aspect=0.4, degrees=12)
    images = sometimes(images, 0.35, generator, lambda some: cartoon(some, generator))
    images = sometimes(images, 0.06, generator, lambda some: line_drawing(some, generator))
    images = sometimes(images, 0.65, generator, lambda some: colour_jitter(some, generator, strength=0.8))
    images = sometimes(images, 0.08, generator, grayscale)
    images = sometimes(images, 0.03, generator, invert)
    images = resample_some(images, generator, sizes_px=(12, 16, 20, 24), probability=0.15)
    images = sometimes(images, 0.1, generator, lambda some: noise(some, generator))
    return sometimes(images, 0.12, generator, lambda some: cut_out(some, generator))


def augment_aerial(images_NCHW: Tensor, generator: torch.Generator, *, out_px: int) -> Tensor:
    """Aerial views: all eight orientations, zoomed far out as well as in, orbital haze, weak contrast."""
    wide = affine(
        images_NCHW, generator, out_px=2 * out_px, scale=(0.4, 1.8), aspect=0.3, degrees=15, quarter_turns=True
    )
    images = F.avg_pool2d(wide, 2)
    images = sometimes(images, 0.8, generator, lambda some: colour_jitter(some, generator, strength=0.9))
    images = sometimes(images, 0.4, generator, lambda some: haze(some, generator))
    images = sometimes(images, 0.1, generator, grayscale)
    images = sometimes(images, 0.25, generator, blur)
    images = resample_some(images, generator, sizes_px=(8, 12, 16, 24), probability=0.3)
    images = sometimes(images, 0.2, generator, lambda some: noise(some, generator, most=0.08))
    return sometimes(images, 0.1, generator, lambda some: cut_out(some, generator, most=0.4))


def augment_digits(images_N1HW: Tensor, generator: torch.Generator, *, out_px: int) -> Tensor:
    """Digits: sheared, bent, thick or thin, filling the frame, as coarse as 8 pixels, mostly white on black."""
    count = len(images_N1HW)
    images = sometimes(images_N1HW, 0.25, generator, lambda some: F.max_pool2d(some, 3, 1, 1))
    images = sometimes(images, 0.25, generator, lambda some: -F.max_pool2d(-some, 3, 1, 1))
    images = affine(
        images, generator, out_px=out_px, scale=(0.8, 1.1), aspect=0.6, degrees=15, shear=0.35, shift=0.1,
        flip=False, elastic=0.07, padding="zeros",
    )  # fmt: skip
    for size, share in ((8, 0.45), (12, 0.3), (16, 0.3)):
        images = sometimes(images, share, generator, partial(low_resolution, size_px=size))
    images = images ** torch.exp(uniform(count, -0.5, 0.5, generator))
    ink, paper = uniform(count, 0.7, 1.0, generator), uniform(count, 0.0, 0.15, generator)
    images = (paper + (ink - paper) * images).expand(-1, 3, -1, -1).contiguous()
    images = sometimes(images, 0.3, generator, invert)
    images = sometimes(images, 0.3, generator, lambda some: colour_jitter(some, generator, strength=0.8))
    return sometimes(images, 0.3, generator, lambda some: noise(some, generator))
