"""A few images of a source, read again: galleries, LoRAs and crops to look at, since the store keeps no images.

Legend: S image side in px.
"""

import io
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from PIL import Image

from raydapt.data.decode import BadImage, ImageSpec, decode_image
from raydapt.data.sources import Source, read_parts
from raydapt.settings.groups import DataSettings

_THUMBNAIL = ImageSpec(
    size_px=64, resize_mode="shortest", interpolation="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def read_again(source: Source, data: DataSettings, rows: Iterable[int]) -> Iterator[tuple[int, str, bytes]]:
    """Row, content id and encoded bytes of some rows of a source; those that are still there, part by part."""
    firsts = [part.first_row for part in source.parts]
    wanted: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        wanted[bisect_right(firsts, row) - 1].add(row)
    for part, table in read_parts([source.parts[index] for index in sorted(wanted)], data):
        for row, id_, image in zip(table["row"].to_pylist(), table["id"].to_pylist(), table["image"], strict=True):
            if row in wanted[part.index] and image.is_valid:
                yield row, id_, image.as_py()


def encoded_images(source: Source, data: DataSettings, id_of: Mapping[int, str]) -> dict[int, bytes]:
    """Encoded images by row; left out are rows whose content is no longer that of the given id."""
    return {row: image for row, id_, image in read_again(source, data, id_of) if id_ == id_of[row]}


def thumbnails(source: Source, data: DataSettings, id_of: Mapping[int, str]) -> dict[int, bytes]:
    """Small PNGs by row; empty where an image can no longer be decoded."""
    return {row: thumbnail(image, data) for row, image in encoded_images(source, data, id_of).items()}


def pixels_of_rows(source: Source, data: DataSettings, rows: Iterable[int], size_px: int) -> dict[int, np.ndarray]:
    """uint8 pixels [3, S, S] of some rows, shorter side to `size_px` and cut to the middle."""
    spec = ImageSpec(size_px=size_px, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    pixels: dict[int, np.ndarray] = {}
    for row, _, image in read_again(source, data, rows):
        try:
            pixels[row] = decode_image(image, spec, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes)
        except BadImage:  # it changed since the features were made
            continue
    return pixels


def thumbnail(image: bytes, data: DataSettings) -> bytes:
    """The image as a small PNG; empty if it cannot be decoded."""
    try:
        pixel_3SS = decode_image(
            image, _THUMBNAIL, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes
        )
    except BadImage:
        return b""
    sink = io.BytesIO()
    Image.fromarray(pixel_3SS.transpose(1, 2, 0)).save(sink, format="PNG")
    return sink.getvalue()
