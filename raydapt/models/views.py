"""Views of stored pixels, cut, resized and augmented in batches on the device where the pixels lie.

Pixels are stored larger than the model takes them, so that a crop still has detail. Views are float32 in 0..255, ready
for `Clip.normalise_pixels`.

Legend: B images, N crops per image, P stored side in px, S the model's side in px, K boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align
from torchvision.transforms import v2

_SAMPLES_PER_PIXEL = 2
"""Bilinear samples per side of an output pixel: averages instead of aliasing where a crop is made smaller."""
_GROUPS = 8
"""Groups of a batch that share the operations of RandAugment; their magnitudes are those of the library."""
_RAND_AUGMENT = v2.RandAugment(num_ops=2, magnitude=27, num_magnitude_bins=31)
"""timm's ``rand-m9``: two operations at nine tenths of their range."""
_ASPECT = (3 / 4, 4 / 3)
_JITTER = v2.ColorJitter(0.5, 0.5, 0.5, 0.1)
_LIGHT_AREA, _JITTERED, _GREY = 0.9, 0.8, 0.2


def whole_view(pixel_B3PP: Tensor, side_px: int) -> Tensor:
    """The whole image at the model's size [B, 3, S, S], resized as CLIP's own preparation does (bicubic)."""
    view = pixel_B3PP.to(torch.float32)
    if view.shape[-1] == side_px:
        return view
    return F.interpolate(view, size=(side_px, side_px), mode="bicubic", antialias=True).clamp(0, 255)


def square_boxes(n_images: int, n_crops: int, sides: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Random squares within the unit square, float32 [B, N, 4] as x1, y1, x2, y2 (arXiv 2507.09615, reconstructed).

    Args:
        n_images: B.
        n_crops: N.
        sides: Range of the side as a share of the image's; uniform, and so is the place.
        generator: On the CPU; decides everything.
    """
    draw_BN3 = torch.rand(n_images, n_crops, 3, generator=generator)
    side_BN = sides[0] + (sides[1] - sides[0]) * draw_BN3[..., 0]
    corner_BN2 = draw_BN3[..., 1:] * (1 - side_BN[..., None])
    return torch.cat([corner_BN2, corner_BN2 + side_BN[..., None]], dim=-1)


def crop_view(pixel_B3PP: Tensor, box_BN4: Tensor, side_px: int) -> Tensor:
    """All crops of all images in one call, [B * N, 3, S, S]: those of the first image first."""
    n_images, n_crops, _ = box_BN4.shape
    image_K = torch.arange(n_images, device=pixel_B3PP.device).repeat_interleave(n_crops)
    box_K4 = box_BN4.reshape(-1, 4).to(pixel_B3PP.device) * pixel_B3PP.shape[-1]
    box_K5 = torch.cat([image_K[:, None].to(box_K4), box_K4], dim=1)
    crops: Tensor = roi_align(
        pixel_B3PP.to(torch.float32), box_K5, side_px, sampling_ratio=_SAMPLES_PER_PIXEL, aligned=True
    )
    return crops


def strong_view(
    pixel_B3PP: Tensor, side_px: int, *, least_area: float, flip: bool, rand_augment: bool = True
) -> Tensor:
    """A random part of every image, mirrored half of the time, under RandAugment; [B, 3, S, S].

    Part, aspect ratio and mirroring are drawn per image; the operations of RandAugment (torchvision's) are drawn for
    `_GROUPS` groups of the batch. Everything is drawn from torch's global generator.

    Args:
        pixel_B3PP: uint8 pixels.
        side_px: S.
        least_area: The part covers between this share and all of the image (timm's ``scale``).
        flip: Whether to mirror.
        rand_augment: Whether RandAugment follows.
    """
    n_images = len(pixel_B3PP)
    view = crop_view(pixel_B3PP, _parts(torch.rand(n_images, 4), least_area)[:, None], side_px)
    mirrored_B = torch.rand(n_images) < 0.5
    if flip:
        view = torch.where(mirrored_B.to(view.device)[:, None, None, None], view.flip(-1), view)
    if not rand_augment:
        return view
    group_of = view.round().to(torch.uint8).chunk(_GROUPS)
    return torch.cat([_RAND_AUGMENT(group) for group in group_of]).to(torch.float32)


def _parts(draw_B4: Tensor, least_area: float) -> Tensor:
    """Boxes [B, 4] of random area and aspect ratio, as torchvision's RandomResizedCrop, cut back to the image."""
    area_B = least_area + (1 - least_area) * draw_B4[:, 0]
    low, high = (math.log(bound) for bound in _ASPECT)
    ratio_B = torch.exp(low + (high - low) * draw_B4[:, 1])
    size_B2 = torch.stack([(area_B * ratio_B).sqrt(), (area_B / ratio_B).sqrt()], dim=1).clamp(max=1)
    corner_B2 = draw_B4[:, 2:] * (1 - size_B2)
    return torch.cat([corner_B2, corner_B2 + size_B2], dim=1)


def light_view(pixel_B3PP: Tensor, side_px: int) -> Tensor:
    """Nearly the whole of every image, its colours jittered or taken (LatteCLIP's view); [B, 3, S, S].

    RandomResizedCrop (0.9 to 1 of the area), ColorJitter (0.5, 0.5, 0.5, 0.1) for 80 of 100 images and greys for 20.
    Part and choice are drawn per image, the degrees of the jitter for `_GROUPS` groups of the batch.
    """
    n_images = len(pixel_B3PP)
    view = crop_view(pixel_B3PP, _parts(torch.rand(n_images, 4), _LIGHT_AREA)[:, None], side_px) / 255
    draw_2B111 = torch.rand(2, n_images, 1, 1, 1).to(view.device)
    return _recoloured(view, draw_2B111[0], draw_2B111[1])


def contrast_view(pixel_B3PP: Tensor, side_px: int, *, least_area: float, flip: bool) -> Tensor:
    """SimCLR's view (Chen et al., ICML 2020, appendix A) without blur; [B, 3, S, S] in 0..255.

    A random part, mirrored half of the time where `flip` says so, ColorJitter (0.5, 0.5, 0.5, 0.1) for 80 of 100 images
    and greys for 20. Part, mirroring and choice are drawn per image, the degrees of the jitter for `_GROUPS` groups of
    the batch.
    """
    n_images = len(pixel_B3PP)
    view = crop_view(pixel_B3PP, _parts(torch.rand(n_images, 4), least_area)[:, None], side_px) / 255
    draw_3B111 = torch.rand(3, n_images, 1, 1, 1).to(view.device)
    if flip:
        view = torch.where(draw_3B111[2] < 0.5, view.flip(-1), view)
    return _recoloured(view, draw_3B111[0], draw_3B111[1])


def _recoloured(view: Tensor, jitter_B111: Tensor, grey_B111: Tensor) -> Tensor:
    """Views in 0..1 with their colours jittered or taken, in 0..255; uniform numbers say which."""
    jittered = torch.cat([_JITTER(group) for group in view.chunk(_GROUPS)])
    view = torch.where(jitter_B111 < _JITTERED, jittered, view)
    grey = v2.functional.rgb_to_grayscale(view, num_output_channels=3)
    return (255 * torch.where(grey_B111 < _GREY, grey, view)).clamp(0, 255)
