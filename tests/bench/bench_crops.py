"""Crop features/s: all crops of a batch of images cut and encoded together, against one crop at a time.

``python -m tests.bench.bench_crops`` prints a Markdown table. Both ways give the same features.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from raydapt.models.clip import Clip, load_clip
from raydapt.models.views import crop_view, square_boxes
from raydapt.stages.crops import encode_with_crops

IMAGES, CROPS, STORED_PX = 128, 8, 64


@torch.inference_mode()
def one_by_one(clip: Clip, pixel_B3PP: Tensor, box_BK4: Tensor) -> Tensor:
    """Features [B, K, D] by two loops."""
    side = clip.image_spec.size_px
    return torch.stack(
        [
            torch.cat([clip.encode_image(crop_view(image[None], box[None, None], side)) for box in box_K4])
            for image, box_K4 in zip(pixel_B3PP, box_BK4, strict=True)
        ]
    )


def batched(clip: Clip, pixel_B3PP: Tensor, box_BK4: Tensor) -> Tensor:
    """Features [B, K, D] as the stage makes them, 32 images at a time."""
    parts = [
        encode_with_crops(clip, pixels, boxes)
        for pixels, boxes in zip(pixel_B3PP.split(32), box_BK4.split(32), strict=True)
    ]
    return torch.cat(parts)[:, 1:]


def rates_of() -> tuple[dict[str, float], float]:
    """Crops per CPU second of both ways, and the largest difference between their features."""
    torch.manual_seed(0)
    clip = load_clip("mini")
    pixel_B3PP = torch.randint(0, 256, (IMAGES, 3, STORED_PX, STORED_PX), dtype=torch.uint8)
    box_BK4 = square_boxes(IMAGES, CROPS, (0.5, 0.9), torch.Generator().manual_seed(0))
    rates: dict[str, float] = {}
    features: dict[str, Tensor] = {}
    ways: dict[str, Callable[[Clip, Tensor, Tensor], Tensor]] = {"one crop at a time": one_by_one, "batched": batched}
    for name, way in ways.items():
        way(clip, pixel_B3PP[:4], box_BK4[:4])
        started = time.process_time()
        features[name] = way(clip, pixel_B3PP, box_BK4)
        rates[name] = IMAGES * CROPS / (time.process_time() - started)
    return rates, float((features["batched"] - features["one crop at a time"]).abs().max())


def ratios() -> dict[str, float]:
    """How many times as fast crops are encoded together."""
    rates, _ = rates_of()
    return {"crops, mini": rates["batched"] / rates["one crop at a time"]}


def main() -> None:
    """Prints crops/s of both ways; the batched way encodes the whole images besides."""
    rates, largest = rates_of()
    print(f"| {CROPS} crops each of {IMAGES} images (`mini`) | crops per CPU second | times naive |")
    print("|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates['one crop at a time']:.1f} |")
    print(f"\nLargest difference between the two: {largest:.1e}.")


if __name__ == "__main__":
    main()
