"""Weak and strong views of whole batches, on the device the batch is on, every image with its own random numbers.

Weak: random crop from a padded image, mirror image, and (where the domain has no upright) quarter turns. Strong: weak,
one random operation (RandAugment, Cubuk et al. 2020) and a Cutout square. The published code augments image by
image in loader processes; here an operation is applied at once to all images that drew it.

Legend: B batch, M images that drew one operation, S side in px.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

# Ranges at full magnitude: those of RandAugment's public implementations.
_ENHANCE, _SHEAR, _SHIFT, _TURN_RAD = 0.9, 0.3, 0.3, math.radians(30)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How views are made.

    Attributes:
        mean: Of each channel, of pixels in 0..1.
        std: Likewise.
        padding_px: Reach of the random crop.
        mirror: Whether images may be mirrored.
        quarter_turns: Whether images may be turned by multiples of 90 degrees.
        magnitude: Strength of the random operation, 0 to 10; 0 leaves it out.
        cutout_px: Side of the square that is cut out; 0 leaves it out, ``random`` draws it up to half of the image's.
        published: Whether the operation's degree is drawn from the ranges of Co-Reg's code, whatever the magnitude.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding_px: int
    mirror: bool
    quarter_turns: bool
    magnitude: float
    cutout_px: int | Literal["random"]
    published: bool = False

    def plain(self, pixel_B3SS: Tensor) -> Tensor:
        """Normalised float32 images of uint8 pixels."""
        mean, std = (torch.tensor(value, device=pixel_B3SS.device).view(3, 1, 1) for value in (self.mean, self.std))
        image_B3SS = (pixel_B3SS.to(torch.float32) / 255 - mean) / std
        return image_B3SS.contiguous(memory_format=torch.channels_last)

    def weak(self, pixel_B3SS: Tensor) -> Tensor:
        """A weak view, normalised."""
        return self.plain(self._moved(pixel_B3SS))

    def strong(self, pixel_B3SS: Tensor) -> Tensor:
        """A strong view, normalised; what is cut out has the mean colour."""
        pixel_B3SS = self._moved(pixel_B3SS)
        if self.published:
            pixel_B3SS = published_operation(pixel_B3SS)
        elif self.magnitude:
            pixel_B3SS = random_operation(pixel_B3SS, self.magnitude / 10)
        image_B3SS = self.plain(pixel_B3SS)
        return cut_out(image_B3SS, self.cutout_px) if self.cutout_px else image_B3SS

    def _moved(self, pixel_B3SS: Tensor) -> Tensor:
        moved = crop_and_mirror(pixel_B3SS, self.padding_px, mirror=self.mirror)
        return quarter_turn(moved) if self.quarter_turns else moved


def crop_and_mirror(pixel_B3SS: Tensor, padding_px: int, *, mirror: bool) -> Tensor:
    """A crop of the old size from the zero-padded image, at its own place for every image, half of them mirrored."""
    n, side, device = len(pixel_B3SS), pixel_B3SS.shape[-1], pixel_B3SS.device
    top_B, left_B = torch.randint(0, 2 * padding_px + 1, (2, n), device=device)
    step_S = torch.arange(side, device=device)
    row_BS = top_B[:, None] + step_S
    column_BS = left_B[:, None] + step_S
    if mirror:
        flip_B1 = torch.rand(n, 1, device=device) < 0.5
        column_BS = torch.where(flip_B1, column_BS.flip(1), column_BS)
    padded = F.pad(pixel_B3SS, (padding_px,) * 4)
    image_B111 = torch.arange(n, device=device).view(-1, 1, 1, 1)
    channel_311 = torch.arange(3, device=device).view(3, 1, 1)
    return padded[image_B111, channel_311, row_BS[:, None, :, None], column_BS[:, None, None, :]]


def quarter_turn(pixel_B3SS: Tensor) -> Tensor:
    """Turns every image by 0, 90, 180 or 270 degrees."""
    quarters_B = torch.randint(0, 4, (len(pixel_B3SS),), device=pixel_B3SS.device)
    turned = pixel_B3SS.clone()
    for quarters in (1, 2, 3):
        drew_M = (quarters_B == quarters).nonzero().flatten()
        turned[drew_M] = torch.rot90(pixel_B3SS[drew_M], quarters, (2, 3))
    return turned


def cut_out(image_B3SS: Tensor, side_px: int | Literal["random"]) -> Tensor:
    """Zeroes a square around a random pixel, as far as it lies within the image (DeVries & Taylor 2017).

    A ``random`` side is uniform from 0 to half of the image's, for every image its own (FixMatch's code).
    """
    n, side, device = len(image_B3SS), image_B3SS.shape[-1], image_B3SS.device
    side_B1: Tensor | int = (torch.rand(n, 1, device=device) * 0.5 * side).long() if side_px == "random" else side_px
    centre_2B = torch.randint(0, side, (2, n), device=device)
    step_S = torch.arange(side, device=device)
    start_2B1 = centre_2B[..., None] - side_B1 // 2
    row_BS, column_BS = ((step_S >= start) & (step_S < start + side_B1) for start in start_2B1)
    hole_B1SS = (row_BS[:, :, None] & column_BS[:, None, :])[:, None]
    return image_B3SS.masked_fill(hole_B1SS, 0.0)


def random_operation(pixel_B3SS: Tensor, strength: float) -> Tensor:
    """One operation per image, uint8 to uint8; those with a direction draw it as well.

    Args:
        pixel_B3SS: uint8.
        strength: 0 to 1, of the operations that have a degree.
    """
    device = pixel_B3SS.device
    choice_B = torch.randint(0, len(_OPERATIONS), (len(pixel_B3SS),), device=device)
    sign_B = torch.randint(0, 2, (len(pixel_B3SS),), device=device) * 2.0 - 1
    result = pixel_B3SS.clone()
    for i, operation in enumerate(_OPERATIONS):
        drew_M = (choice_B == i).nonzero().flatten()
        if len(drew_M):
            result[drew_M] = operation(pixel_B3SS[drew_M], sign_B[drew_M], strength)
    return result


def published_operation(pixel_B3SS: Tensor) -> Tensor:
    """One operation per image, its degree uniform over the published range (FixMatch's, PiCO's and Co-Reg's code).

    The magnitude that is named there, 5, has no part in it. Brightness, colour, contrast and sharpness go down alone,
    to 0.05 of the image's; the others have `random_operation`'s ranges, drawn evenly.
    """
    result, device = pixel_B3SS.clone(), pixel_B3SS.device
    choice_B = torch.randint(0, len(_OPERATIONS), (len(pixel_B3SS),), device=device)
    degree_B = torch.rand(len(pixel_B3SS), device=device)
    sign_B = torch.randint(0, 2, (len(pixel_B3SS),), device=device) * 2.0 - 1
    for i, operation in enumerate(_OPERATIONS):
        for image in (choice_B == i).nonzero().flatten().tolist():
            degree, row = float(degree_B[image]), slice(image, image + 1)
            if operation in _BLENDS:  # a factor of 1 - 0.9 strength: from 0.95 down to 0.05
                sign_1, strength = -torch.ones(1, device=device), (0.05 + 0.9 * degree) / _ENHANCE
            else:
                sign_1, strength = sign_B[row], degree
            result[row] = operation(pixel_B3SS[row], sign_1, strength)
    return result


Operation = Callable[[Tensor, Tensor, float], Tensor]
"""uint8 pixels [M, 3, S, S], signs [M] and the strength to uint8 pixels."""


def _blend(other: Callable[[Tensor], Tensor]) -> Operation:
    """Moves images away from, or towards, another version of themselves, by 1 +- 0.9 strength."""

    def apply(pixel: Tensor, sign_M: Tensor, strength: float) -> Tensor:
        factor = (1 + sign_M * _ENHANCE * strength).view(-1, 1, 1, 1)
        image = pixel.to(torch.float32)
        return (factor * image + (1 - factor) * other(image)).clamp(0, 255).round().to(torch.uint8)

    return apply


def _affine(entry: tuple[int, int], reach: float) -> Operation:
    """Shears or shifts: one entry of the matrix in units of the image's half side."""

    def apply(pixel: Tensor, sign_M: Tensor, strength: float) -> Tensor:
        matrix_M23 = torch.eye(2, 3, device=pixel.device).repeat(len(pixel), 1, 1)
        scale = 2.0 if entry[1] == 2 else 1.0  # a shift by a share of the whole side
        matrix_M23[:, entry[0], entry[1]] = sign_M * reach * scale * strength
        return _warp(pixel, matrix_M23)

    return apply


def _turn(pixel: Tensor, sign_M: Tensor, strength: float) -> Tensor:
    angle_M = sign_M * _TURN_RAD * strength
    cos_M, sin_M, zero_M = angle_M.cos(), angle_M.sin(), torch.zeros_like(angle_M)
    return _warp(pixel, torch.stack([cos_M, -sin_M, zero_M, sin_M, cos_M, zero_M], 1).view(-1, 2, 3))


def _warp(pixel: Tensor, matrix_M23: Tensor) -> Tensor:
    grid = F.affine_grid(matrix_M23, list(pixel.shape), align_corners=False)
    image = F.grid_sample(pixel.to(torch.float32), grid, mode="nearest", align_corners=False)
    return image.round().to(torch.uint8)


def _grey(image: Tensor) -> Tensor:
    grey: Tensor = vision.rgb_to_grayscale(image, num_output_channels=3)
    return grey


def _mean_grey(image: Tensor) -> Tensor:
    return _grey(image).mean((1, 2, 3), keepdim=True).expand_as(image)


def _blurred(image: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _posterize(pixel: Tensor, _: Tensor, strength: float) -> Tensor:
    image: Tensor = vision.posterize(pixel, bits=8 - round(4 * strength))
    return image


def _solarize(pixel: Tensor, _: Tensor, strength: float) -> Tensor:
    image: Tensor = vision.solarize(pixel, threshold=255 * (1 - strength))
    return image


def _autocontrast(pixel: Tensor, _: Tensor, __: float) -> Tensor:
    image: Tensor = vision.autocontrast(pixel)
    return image


def _equalize(pixel: Tensor, _: Tensor, __: float) -> Tensor:
    image: Tensor = vision.equalize(pixel)
    return image


def _identity(pixel: Tensor, _: Tensor, __: float) -> Tensor:
    return pixel


_BLENDS: tuple[Operation, ...] = (
    _blend(torch.zeros_like),
    _blend(_mean_grey),
    _blend(_grey),
    _blend(_blurred),
)
_OPERATIONS: tuple[Operation, ...] = (
    _identity,
    _autocontrast,
    _equalize,
    _posterize,
    _solarize,
    _turn,
    *_BLENDS,
    _affine((0, 1), _SHEAR),
    _affine((1, 0), _SHEAR),
    _affine((0, 2), _SHIFT),
    _affine((1, 2), _SHIFT),
)
