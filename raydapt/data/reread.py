"""A few images of a source, read again: the store keeps features, not the images themselves."""

import io
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence

from PIL import Image

from raydapt.data.decode import BadImage, ImageSpec, decode_image
from raydapt.data.sources import Source, read_parts
from raydapt.settings.groups import DataSettings

_THUMBNAIL = ImageSpec(
    size_px=64, resize_mode="shortest", interpolation="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def reread_images(
    source: Source, rows: Sequence[int], data: DataSettings, *, ids: Sequence[str] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Reads the parts that hold some rows of a source, each once, and yields the encoded images that are still there.

    Args:
        source: The images.
        rows: Numbers of the wanted rows in the source, in any order.
        data: Limits of reading.
        ids: The content id of each row; an image whose content has changed is then left out.

    Yields:
        The position in `rows`, and the encoded image; in the order of the source.
    """
    firsts = [part.first_row for part in source.parts]
    wanted: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, row in enumerate(rows):
        wanted[bisect_right(firsts, row) - 1][row].append(position)
    for part, table in read_parts([source.parts[index] for index in sorted(wanted)], data):
        columns = (table["row"].to_pylist(), table["id"].to_pylist(), table["image"])
        for row, id_, image in zip(*columns, strict=True):
            if row not in wanted[part.index] or not image.is_valid:
                continue
            for position in wanted[part.index][row]:
                if ids is None or ids[position] == id_:
                    yield position, image.as_py()


def thumbnails(source: Source, rows: Sequence[int], data: DataSettings, ids: Sequence[str]) -> dict[int, bytes]:
    """Small PNGs by the position in `rows`; empty where an image can no longer be decoded (see `reread_images`)."""
    return {at: thumbnail(image, data) for at, image in reread_images(source, rows, data, ids=ids)}


def thumbnail(image: bytes, data: DataSettings) -> bytes:
    """An encoded image as a small PNG; empty if it cannot be decoded."""
    try:
        pixel_3SS = decode_image(image, _THUMBNAIL, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes)
    except BadImage:
        return b""
    sink = io.BytesIO()
    Image.fromarray(pixel_3SS.transpose(1, 2, 0)).save(sink, format="PNG")
    return sink.getvalue()
