"""What can be said of an image from its pixels alone: colour, light and contrast; of a digit its stroke and its lean.

The sentences of the captioner's training take their attributes from here, measured on the very pixels that it sees, so
they are true of the augmented image and not of the one it was made from.

Shapes: ``N`` images, ``H``/``W`` pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretraining.augment import edges, to_gray

COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
_HUE_ENDS = (0.04, 0.12, 0.19, 0.45, 0.54, 0.72, 0.82, 0.94)
"""Where each colour's range of hues ends, in turns; what follows the last is red again."""
GRAY_BELOW = 0.07
"""Mean chroma under which an image counts as grey."""
DARK_BELOW, BRIGHT_ABOVE = 0.33, 0.62
FLAT_BELOW, CRISP_ABOVE = 0.12, 0.27
CALM_BELOW, BUSY_ABOVE = 0.16, 0.42
THIN_BELOW, BOLD_ABOVE = 0.30, 0.46
LEAN_ABOVE = 0.14


def hue_and_chroma(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The hue in turns, 0 for red, and the chroma (largest minus smallest channel) of every pixel, as NHW."""
    red, green, blue = images_NCHW.unbind(1)
    most, least = images_NCHW.amax(1), images_NCHW.amin(1)
    chroma = most - least
    safe = chroma.clamp(min=1e-6)
    hue = torch.where(
        most == red,
        ((green - blue) / safe) % 6,
        torch.where(most == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return hue / 6, chroma


def colour_names(images_NCHW: Tensor) -> list[str]:
    """The colour that most of the chroma has; "grey" for images with next to none, "brown" for dark orange."""
    hue_NHW, chroma_NHW = hue_and_chroma(images_NCHW)
    ends = torch.tensor(_HUE_ENDS)
    bin_NHW = torch.bucketize(hue_NHW, ends) % len(COLOURS)
    votes = torch.zeros(len(images_NCHW), len(COLOURS)).scatter_add_(1, bin_NHW.flatten(1), chroma_NHW.flatten(1))
    light_N = to_gray(images_NCHW).mean((1, 2, 3))
    names = []
    for vote, chroma, light in zip(
        votes.argmax(1).tolist(), chroma_NHW.mean((1, 2)).tolist(), light_N.tolist(), strict=True
    ):
        name = "grey" if chroma < GRAY_BELOW else COLOURS[vote]
        names.append("brown" if name == "orange" and light < 0.55 else name)
    return names


def three_words(values_N: Tensor, below: float, above: float, words: tuple[str, str, str]) -> list[str]:
    """The first word under ``below``, the last one over ``above``, the middle one (often empty) between."""
    return [words[0] if value < below else words[2] if value > above else words[1] for value in values_N.tolist()]


def picture_words(images_NCHW: Tensor) -> list[dict[str, str]]:
    """Colour, light, contrast and detail of each image; an empty word where nothing stands out."""
    gray_N1HW = to_gray(images_NCHW)
    colour = colour_names(images_NCHW)
    light = three_words(gray_N1HW.mean((1, 2, 3)), DARK_BELOW, BRIGHT_ABOVE, ("dark", "", "bright"))
    contrast = three_words(gray_N1HW.std((1, 2, 3)), FLAT_BELOW, CRISP_ABOVE, ("pale", "", "strong"))
    detail = three_words(edges(images_NCHW).mean((1, 2, 3)), CALM_BELOW, BUSY_ABOVE, ("smooth", "", "detailed"))
    return [
        {"colour": c, "light": li, "contrast": co, "detail": d}
        for c, li, co, d in zip(colour, light, contrast, detail, strict=True)
    ]


def ink_of(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The ink_NHW of digits in [0, 1], whichever way they are printed, and whether they are white on black."""
    gray_NHW = to_gray(images_NCHW).squeeze(1)
    low, high = gray_NHW.amin((1, 2), keepdim=True), gray_NHW.amax((1, 2), keepdim=True)
    scaled_NHW = (gray_NHW - low) / (high - low).clamp(min=1e-3)
    corners = torch.stack(
        [scaled_NHW[:, y, x] for y in (slice(0, 3), slice(-3, None)) for x in (slice(0, 3), slice(-3, None))]
    )
    white_N = corners.mean((0, 2, 3)) < 0.5
    return torch.where(white_N[:, None, None], scaled_NHW, 1 - scaled_NHW), white_N


def lean_of(ink_NHW: Tensor) -> Tensor:
    """How far ink moves to the right per pixel upwards: the shear that deskewing would undo."""
    height, width = ink_NHW.shape[1:]
    down_H, right_W = torch.arange(height).float(), torch.arange(width).float()
    mass_N = ink_NHW.sum((1, 2)).clamp(min=1e-3)
    middle_y = (ink_NHW.sum(2) @ down_H) / mass_N
    middle_x = (ink_NHW.sum(1) @ right_W) / mass_N
    off_y = down_H[None, :, None] - middle_y[:, None, None]
    off_x = right_W[None, None, :] - middle_x[:, None, None]
    spread = (ink_NHW * off_y**2).sum((1, 2)).clamp(min=1e-3)
    return -(ink_NHW * off_y * off_x).sum((1, 2)) / spread


def digit_words(images_NCHW: Tensor) -> list[dict[str, str]]:
    """Weight, lean and polarity of each digit; an empty word for a middling weight."""
    ink_NHW, white_N = ink_of(images_NCHW)
    inside = (ink_NHW > 0.4).float()
    rows, columns = inside.amax(2).sum(1).clamp(min=1), inside.amax(1).sum(1).clamp(min=1)
    filled_N = inside.sum((1, 2)) / (rows * columns)
    weight = three_words(filled_N, THIN_BELOW, BOLD_ABOVE, ("thin", "", "bold"))
    lean = three_words(lean_of(ink_NHW), -LEAN_ABOVE, LEAN_ABOVE, ("left", "upright", "right"))
    polarity = ["white on black" if white else "black on white" for white in white_N.tolist()]
    return [{"weight": w, "lean": le, "polarity": p} for w, le, p in zip(weight, lean, polarity, strict=True)]


def shared_words(words: list[dict[str, str]]) -> dict[str, str]:
    """Of several images, the words that at least three quarters of them have."""
    common = {}
    for key in words[0]:
        values = [one[key] for one in words]
        most = max(set(values), key=lambda value: (values.count(value), value))
        common[key] = most if 4 * values.count(most) >= 3 * len(values) else ""
    return common
