"""JPEGs decoded, resized and cropped in batches on the device that encodes them: by nvJPEG on a GPU.

Decoding is torchvision's, on a CPU libjpeg-turbo as in Pillow. Whatever is no plain JPEG, or fails here, is decoded by
Pillow row by row, so that the same rows are answered and the same rows are in error. Pixels differ from Pillow's by the
rounding of the resize, on a GPU also by that of the colours.

Legend: N images of a part, M some of them, B images of one size, H height, W width, S side in px.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from raydapt.data.decode import (
    JPEG_PX,
    MOST_DEVICE_PX,
    BadImage,
    ImageSpec,
    decode_image,
    decode_measured,
    resized_size,
)
from raydapt.data.measures import MEASURES, Measures, measure, measured_size
from raydapt.settings.groups import DataSettings

_INTERPOLATION = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A part that is decoded, while a thread still looks at what its images show."""

    part: pa.Table
    """Its other columns; what images show is null for those that are still looked at."""
    pixel_N3SS: Tensor
    """uint8, on the device; zeros for rows in error."""
    measuring: list[tuple[list[int], Future[list[Measures]]]]
    """Rows, and what is found out about them."""

    def table(self) -> pa.Table:
        """The whole part, without pixels."""
        found = {row: of for rows, future in self.measuring for row, of in zip(rows, future.result(), strict=True)}
        return _with_measures(self.part, found) if found else self.part


@dataclass(frozen=True, kw_only=True)
class DeviceDecoder:
    """How an encoder's actor decodes what `raydapt.stages.reading` has left encoded."""

    spec: ImageSpec
    data: DataSettings
    """Limits of decoding."""
    measured: bool = False
    """Whether the rows also tell what each image shows, as `raydapt.data.measures` says."""

    def decode(self, table: pa.Table, device: torch.device) -> Decoded:
        """Decodes what is left of a part.

        Args:
            table: A part with the columns `JPEG_PX`, ``image`` (bytes, where the former is given) and ``pixel`` (bytes,
                where the row is decoded).
            device: Where to.
        """
        side = self.spec.size_px
        pixel_N3SS = torch.zeros((table.num_rows, 3, side, side), dtype=torch.uint8, device=device)
        ready_M = np.flatnonzero(table["pixel"].is_valid().to_numpy())
        if len(ready_M):
            flat_M = np.stack([np.frombuffer(table["pixel"][row].as_buffer(), np.uint8) for row in ready_M.tolist()])
            ready_M3SS = torch.from_numpy(flat_M).view(-1, 3, side, side)
            pixel_N3SS[torch.from_numpy(ready_M).to(device)] = ready_M3SS.to(device)
        image_N, left, thread = table["image"], list[int](), ThreadPoolExecutor(1)
        measuring: list[tuple[list[int], Future[list[Measures]]]] = []
        for rows in _batches(table[JPEG_PX].to_pylist()):
            encoded = [torch.from_numpy(np.frombuffer(image_N[row].as_buffer(), np.uint8).copy()) for row in rows]
            decoded = dict(zip(rows, decode_jpegs(encoded, device), strict=True))
            left += [row for row in rows if decoded[row] is None]
            for row_B, images in _by_size(decoded):
                try:
                    resized_B3HW = resize(torch.stack(images), self.spec)
                except RuntimeError:  # a scale beyond what CUDA's kernel holds in its shared memory, or no memory left
                    left += row_B
                    continue
                pixel_N3SS[torch.tensor(row_B, device=device)] = crop(resized_B3HW, side)
                if self.measured:
                    grey_BHW = _small_grey(resized_B3HW)
                    measuring.append((row_B, thread.submit(_measure, grey_BHW, *images[0].shape[1:])))
        thread.shutdown(wait=False)
        part = table.drop_columns(["image", JPEG_PX, "pixel"])
        return Decoded(
            part=self._by_pillow(part, image_N, left, pixel_N3SS), pixel_N3SS=pixel_N3SS, measuring=measuring
        )

    def _by_pillow(self, part: pa.Table, image_N: pa.ChunkedArray, rows: list[int], pixel_N3SS: Tensor) -> pa.Table:
        """Decodes rows that could not be decoded on the device, or tells why nobody can."""
        most = {"max_pixels": self.data.max_image_pixels, "max_bytes": self.data.max_image_bytes}
        decode = decode_measured if self.measured else decode_image
        errors, measures = dict[int, str](), dict[int, Measures]()
        for row in rows:
            try:
                found = decode(image_N[row].as_py(), self.spec, **most)
            except BadImage as error:
                errors[row] = error.reason
                continue
            if isinstance(found, tuple):
                found, measures[row] = found
            pixel_N3SS[row] = torch.from_numpy(found).to(pixel_N3SS.device)
        part = _with_values(part, "error", errors)
        return _with_measures(part, measures) if measures else part


def decode_jpegs(encoded: list[Tensor], device: torch.device) -> list[Tensor | None]:
    """Decodes JPEGs in one call.

    Args:
        encoded: Their bytes as uint8, on the CPU.
        device: Where the results are.

    Returns:
        uint8 [3, H, W] of each, None where it cannot be decoded here.
    """
    if device.type == "cuda":
        # torchvision decodes on a stream of its own, which does not wait for this one: it may be given memory that work
        # queued here still reads (pytorch/vision pull request 9606).
        torch.cuda.current_stream(device).synchronize()
    try:
        decoded: list[Tensor | None] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    except RuntimeError:  # there are no partial results, and the message does not say which of them it was
        return [None] if len(encoded) == 1 else [decode_jpegs([one], device)[0] for one in encoded]
    return decoded


def resize(pixel_BCHW: Tensor, spec: ImageSpec) -> Tensor:
    """uint8 images in the size that they have before the crop; as Pillow does it but for rounding."""
    height, width = pixel_BCHW.shape[-2:]
    to_width, to_height = resized_size(width, height, spec)
    return _resize(pixel_BCHW, to_width, to_height, _INTERPOLATION[spec.interpolation])


def crop(pixel_BCHW: Tensor, side: int) -> Tensor:
    """The middle [B, C, S, S] of images, padded with black where they are smaller; as Pillow's way crops."""
    height, width = pixel_BCHW.shape[-2:]
    more_x, more_y = max(side - width, 0), max(side - height, 0)
    if more_x or more_y:
        before_x, before_y = more_x // 2, more_y // 2
        pixel_BCHW = F.pad(pixel_BCHW, (before_x, more_x - before_x, before_y, more_y - before_y))
    left, top = round((width + more_x - side) / 2.0), round((height + more_y - side) / 2.0)
    return pixel_BCHW[..., top : top + side, left : left + side]


def _resize(pixel_BCHW: Tensor, width: int, height: int, interpolation: InterpolationMode) -> Tensor:
    if (height, width) == tuple(pixel_BCHW.shape[-2:]):
        return pixel_BCHW
    resized: Tensor = vision.resize(pixel_BCHW, [height, width], interpolation=interpolation, antialias=True)
    return resized


def _by_size(image_of: Mapping[int, Tensor | None]) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Rows of the images of each size, and these images [3, H, W]."""
    same = defaultdict[torch.Size, tuple[list[int], list[Tensor]]](lambda: ([], []))
    for row, image_3HW in image_of.items():
        if image_3HW is not None:
            rows, images = same[image_3HW.shape]
            rows.append(row)
            images.append(image_3HW)
    yield from same.values()


def _small_grey(resized_B3HW: Tensor) -> npt.NDArray[np.uint8]:
    """The grey copies that `measure` would make, which alone leave the device."""
    size = measured_size(resized_B3HW.shape[-1], resized_B3HW.shape[-2])
    grey_B1HW = _resize(vision.rgb_to_grayscale(resized_B3HW), *size, InterpolationMode.BICUBIC)
    level_BHW: npt.NDArray[np.uint8] = grey_B1HW[:, 0].cpu().numpy()
    return level_BHW


def _measure(level_BHW: npt.NDArray[np.uint8], height: int, width: int) -> list[Measures]:
    return [measure(Image.fromarray(level_HW), width=width, height=height) for level_HW in level_BHW]


def _batches(px_N: Sequence[int | None]) -> Iterator[list[int]]:
    """Rows that are decoded together: of no more than `MOST_DEVICE_PX`."""
    rows, px = list[int](), 0
    for row, own_px in enumerate(px_N):
        if own_px is None:
            continue
        if rows and px + own_px > MOST_DEVICE_PX:
            yield rows
            rows, px = [], 0
        rows.append(row)
        px += own_px
    if rows:
        yield rows


def _with_measures(part: pa.Table, measures: Mapping[int, Measures]) -> pa.Table:
    for name in MEASURES:
        part = _with_values(part, name, {row: getattr(of, name) for row, of in measures.items()})
    return part


def _with_values(part: pa.Table, name: str, value_of: Mapping[int, Any]) -> pa.Table:
    """A part with other values in some rows of a column."""
    index = part.schema.get_field_index(name)
    field, values = part.schema.field(index), part[name].to_pylist()
    for row, value in value_of.items():
        values[row] = value
    return part.set_column(index, field, pa.array(values, field.type))
