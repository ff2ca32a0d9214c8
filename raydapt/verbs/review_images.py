"""The images of a review, read again from the source by content id, in a form that every browser shows.

They are decoded and encoded anew here, so that nothing but pixels reaches the page, whatever the source holds.
"""

import io
import posixpath
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import fsspec
from PIL import Image

from raydapt.data.decode import BadImage, decode_rgb
from raydapt.data.parts import Part, Source
from raydapt.data.reread import reread_images
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings

_LARGEST_PX, _LOSSLESS_PX = 1280, 320
_AHEAD = 12
_MOST_KEPT = 400


class ReviewImages:
    """Images by id, read a few at a time and kept."""

    def __init__(self, source: Source, data: DataSettings, row_of: dict[str, int], path_of: dict[str, str]) -> None:
        """Remembers where the images are.

        Args:
            source: As the run read it.
            data: Limits of reading.
            row_of: The row of every image in the source.
            path_of: Where it came from; features in place of images are looked up there.

        Raises:
            UserError: For features that do not tell where their images are.
        """
        self._source, self._data, self._row_of, self._path_of = source, data, row_of, path_of
        self._kept: dict[str, bytes] = {}
        self._lock = threading.Lock()
        if source.width:
            self._check_addresses()

    def read(self, id_: str, ahead: Sequence[str] = ()) -> bytes | None:
        """An encoded PNG or JPEG; None where the image is gone, changed, or cannot be decoded.

        Args:
            id_: Its content id.
            ahead: The images that are likely asked for next, read together with it.
        """
        with self._lock:
            if id_ not in self._kept:
                wanted = [id_, *(other for other in ahead[:_AHEAD] if other not in self._kept and other != id_)]
                while len(self._kept) > _MOST_KEPT:
                    self._kept.pop(next(iter(self._kept)))
                self._kept |= dict.fromkeys(wanted, b"") | self._fetch(wanted)
            return self._kept[id_] or None

    def _fetch(self, ids: Sequence[str]) -> dict[str, bytes]:
        if self._source.width:
            return {id_: self._shown(self._at_address(self._path_of[id_])) for id_ in ids}
        rows = [self._row_of[id_] for id_ in ids]
        source = _only(self._source, rows)
        return {ids[at]: self._shown(image) for at, image in reread_images(source, rows, self._data, ids=ids)}

    def _at_address(self, path: str) -> bytes:
        try:
            with fsspec.open(self._address(path), "rb") as stream:
                data: bytes = stream.read(self._data.max_image_bytes + 1)
        except (OSError, ValueError, ImportError):
            return b""
        return data

    def _address(self, path: str) -> str:
        """A path beside the file of features, unless it is a whole one or an address."""
        if "://" in path or path.startswith("/"):
            return path
        root = self._source.uri
        folder = root if "://" not in root and Path(root).is_dir() else posixpath.dirname(root)
        return posixpath.join(folder, path)

    def _check_addresses(self) -> None:
        first = next(iter(self._path_of.values()), "")
        if not self._at_address(first):
            raise UserError(
                f"Setting data.source={self._source.uri!r} holds features, and no image can be read at {first!r}: give "
                "it a column 'path' with paths (beside the file) or addresses of the images."
            )

    def _shown(self, data: bytes) -> bytes:
        try:
            image = decode_rgb(data, max_pixels=self._data.max_image_pixels, max_bytes=self._data.max_image_bytes)
        except BadImage:
            return b""
        image.thumbnail((_LARGEST_PX, _LARGEST_PX), Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        if max(image.size) <= _LOSSLESS_PX:
            image.save(sink, format="PNG")
        else:
            image.save(sink, format="JPEG", quality=92)
        return sink.getvalue()


def media_type(data: bytes) -> str:
    """Of what `ReviewImages.read` gives."""
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


def _only(source: Source, rows: Sequence[int]) -> Source:
    """A source of image files cut down to some rows: a part of it holds a thousand files, and few are wanted."""
    if source.kind != "files":
        return source
    firsts = [part.first_row for part in source.parts]
    parts: list[Part] = []
    for row in sorted(set(rows)):
        part = source.parts[bisect_right(firsts, row) - 1]
        at = slice(row - part.first_row, row - part.first_row + 1)
        parts.append(replace(part, index=len(parts), uris=part.uris[at], told=part.told[at], first_row=row, rows=1))
    return replace(source, parts=tuple(parts))
