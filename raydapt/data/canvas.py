"""Four images on one canvas, as a captioner sees a group (LatteCLIP).

The paper's canvas has 672 px and a gap of 20 px between cells of 326 px; that the images stand in the middle of their
cells is a reconstruction.
"""

from collections.abc import Sequence

from PIL import Image, ImageOps

CANVAS_PX, GAP_PX = 672, 20
PER_GROUP = 4


def canvas_sides(images: Sequence[Image.Image], canvas_px: int | None, gap_px: int | None) -> tuple[int, int]:
    """Side of the canvas and of the gap for these images.

    Args:
        images: The group.
        canvas_px: Side; None: the paper's, or less where no image is larger than its cell, so that none is enlarged.
        gap_px: Gap; None: in the paper's proportion to the canvas.
    """
    if canvas_px is not None:
        return canvas_px, round(canvas_px * GAP_PX / CANVAS_PX) if gap_px is None else gap_px
    full_cell = (CANVAS_PX - GAP_PX) // 2
    cell = min(full_cell, max(max(image.size) for image in images))
    gap = round(cell * GAP_PX / full_cell) if gap_px is None else gap_px
    return 2 * cell + gap, gap


def tile_group(images: Sequence[Image.Image], canvas_px: int | None = None, gap_px: int | None = None) -> Image.Image:
    """Four RGB images, row by row, on black; each is fitted into its cell, its aspect kept, by Lanczos resampling.

    Args:
        images: The group.
        canvas_px: See `canvas_sides`.
        gap_px: See `canvas_sides`.
    """
    if len(images) != PER_GROUP:
        raise ValueError(f"a group has {PER_GROUP} images, not {len(images)}")
    side, gap = canvas_sides(images, canvas_px, gap_px)
    cell = (side - gap) // 2
    canvas = Image.new("RGB", (side, side))
    for place, image in enumerate(images):
        fitted = ImageOps.contain(image, (cell, cell), Image.Resampling.LANCZOS)
        left, top = (place % 2) * (cell + gap), (place // 2) * (cell + gap)
        canvas.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
    return canvas


def shrink(image: Image.Image, longest_px: int) -> Image.Image:
    """The image with its longer side at most so long; smaller ones are left as they are."""
    if max(image.size) <= longest_px:
        return image
    return ImageOps.contain(image, (longest_px, longest_px), Image.Resampling.LANCZOS)
