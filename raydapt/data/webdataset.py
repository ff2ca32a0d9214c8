"""Images in the tar archives of WebDataset: ``key.jpg`` beside ``key.cls``, ``key.txt`` or ``key.json``.

Archives are streamed; nothing is ever extracted to disk, and links in them are not followed.
"""

import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raydapt.data.files import Found, Listing, is_local, open_filesystem, split_of_name
from raydapt.data.formats import IMAGE_SUFFIXES
from raydapt.data.parts import UNKNOWN_ROWS_STRIDE, UNREADABLE, Part, Source, make_rows, new_digest
from raydapt.errors import UserError

_KEY = re.compile(r"^((?:.*/)?[^/.][^/.]*)\.([^/]*)$")
_LABEL_EXTENSIONS = ("cls", "json", "txt")
"""In the order in which they are believed."""
_MOST_LABEL_BYTES = 1 << 20
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)


@dataclass(kw_only=True)
class _Sample:
    """The members with one key that follow each other."""

    key: str
    offset: int
    """First byte of the first member's header."""
    path: str = ""
    image: bytes | None = None
    error: str | None = None
    label: str | None = None
    split: str | None = None
    label_rank: int = len(_LABEL_EXTENSIONS)


def plan(found: Listing, *, rows_per_part: int, limit: int | None) -> Source:
    """Cuts archives into parts by going through their headers.

    An archive that is compressed or not local could only be gone through by reading it all: it is one part, of a size
    that is not known beforehand (unless `limit` asks for the first images).

    Raises:
        UserError: If an archive is none, or there are no images in any.
    """
    filesystem, root = open_filesystem(found.root)
    digest = new_digest(rows_per_part, limit)
    parts: list[Part] = []
    has_labels, rows = False, 0
    for tar in found.tars:
        digest.update(tar.line)
        seekable = _is_seekable(filesystem, tar.name)
        if not seekable and limit is None:
            first_row = (len(parts) + 1) * UNKNOWN_ROWS_STRIDE
            parts.append(_part(found, tar, len(parts), (0, None), first_row, None))
            has_labels = True
            continue
        left = None if limit is None else limit - rows
        offsets, labelled = _index(filesystem, f"{root}/{tar.name}", left)
        has_labels |= labelled
        count = len(offsets) if left is None else min(len(offsets), left)
        step = rows_per_part if seekable else max(count, 1)
        for first in range(0, count, step):
            last = min(first + step, count)
            stop = offsets[last] if last < len(offsets) else None
            span = (offsets[first], stop) if seekable else (0, None)
            parts.append(_part(found, tar, len(parts), span, rows, last - first))
            rows += last - first
        if rows == limit:
            break
    if not parts:
        raise UserError(
            f"data.source={found.uri!r}: the tar archives there hold no images ({', '.join(IMAGE_SUFFIXES)})."
        )
    known = all(part.rows is not None for part in parts)
    return Source(
        uri=found.uri,
        kind="tar",
        parts=tuple(parts),
        rows=rows if known else None,
        identity=digest.hexdigest(),
        has_labels=has_labels,
        splits=tuple(sorted({split for tar in found.tars if (split := split_of_name(tar.name))})),
    )


def read(part: Part, max_bytes: int) -> pa.Table:
    """Reads the samples of a part; what is missing at the end of a broken archive is rows with an error."""
    filesystem, root = open_filesystem(part.root)
    name = part.uris[0]
    samples: list[_Sample] = []
    broken = False
    try:
        with _open_tar(filesystem, f"{root}/{name}", part.start) as tar:
            for sample in _samples(tar, max_bytes):
                if len(samples) == part.rows:
                    break
                samples.append(sample)
    except _TAR_ERRORS:
        broken = True
    missing = (part.rows or 0) - len(samples) if part.rows is not None else int(broken)
    samples += [_Sample(key="", offset=0, path=f"#{len(samples) + i}", error=UNREADABLE) for i in range(missing)]
    split = split_of_name(name)
    return make_rows(
        part,
        [sample.image for sample in samples],
        [f"{name}/{sample.path}" for sample in samples],
        labels=[sample.label for sample in samples],
        splits=[sample.split or split for sample in samples],
        errors=[sample.error for sample in samples],
        max_bytes=max_bytes,
    )


def label_names(source: Source) -> set[str]:
    """All labels in the archives; images are skipped, not read, where the archive can be gone through like that."""
    filesystem, root = open_filesystem(source.parts[0].root)
    names: set[str] = set()
    for uri in dict.fromkeys(part.uris[0] for part in source.parts):
        try:
            with _open_tar(filesystem, f"{root}/{uri}", 0) as tar:
                names.update(sample.label for sample in _samples(tar, 0) if sample.label is not None)
        except _TAR_ERRORS:
            continue  # its images will be rows with errors
    return names


def _index(filesystem: Any, path: str, most: int | None) -> tuple[list[int], bool]:
    """First byte of every sample (of `most` and one more), and whether there are labels."""
    offsets: list[int] = []
    labelled = False
    try:
        with _open_tar(filesystem, path, 0) as tar:
            for sample in _samples(tar, 0):
                offsets.append(sample.offset)
                labelled |= sample.label is not None
                if most is not None and len(offsets) > most:
                    break
    except _TAR_ERRORS as error:
        if not offsets:
            raise UserError(f"{path!r} is no tar archive that can be read ({error}).") from None
    return offsets, labelled


def _part(
    found: Listing, tar: Found, index: int, span: tuple[int, int | None], first_row: int, rows: int | None
) -> Part:
    return Part(
        index=index,
        kind="tar",
        root=found.root,
        uris=(tar.name,),
        start=span[0],
        stop=span[1],
        first_row=first_row,
        rows=rows,
    )


def _is_seekable(filesystem: Any, name: str) -> bool:
    return is_local(filesystem) and not name.lower().endswith("gz")


@contextmanager
def _open_tar(filesystem: Any, path: str, start: int) -> Iterator[tarfile.TarFile]:
    with filesystem.open(path, "rb") as file:
        if start:
            file.seek(start)
        with tarfile.open(fileobj=file, mode="r:" if _is_seekable(filesystem, path) else "r|*") as tar:
            yield tar


def _samples(tar: tarfile.TarFile, max_bytes: int) -> Iterator[_Sample]:
    """The samples that have an image; the one at which an archive breaks off comes before the exception."""
    sample: _Sample | None = None
    try:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would remember the header of every file
            match = _KEY.match(member.name)
            if match is None or not member.isfile() or match[1].startswith("__"):
                continue
            if sample is None or sample.key != match[1]:
                if sample is not None and sample.path:
                    yield sample
                sample = _Sample(key=match[1], offset=member.offset)
            _take(sample, tar, member, match[2].lower(), max_bytes)
    except _TAR_ERRORS:
        if sample is not None and sample.path:
            yield sample
        raise
    if sample is not None and sample.path:
        yield sample


def _take(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, max_bytes: int) -> None:
    """Adds a member to its sample: an image that is not too large, or a label."""
    if f".{extension}" in IMAGE_SUFFIXES and not sample.path:
        sample.path = member.name
        if member.size > max_bytes:
            sample.error = "too_many_bytes"
        else:
            sample.image, sample.error = _read_member(tar, member)
    elif extension in _LABEL_EXTENSIONS and _LABEL_EXTENSIONS.index(extension) < sample.label_rank:
        data = _read_member(tar, member)[0] if member.size <= _MOST_LABEL_BYTES else None
        label, split = _label_of(data or b"", extension)
        sample.split = sample.split or split
        if label is not None:
            sample.label, sample.label_rank = label, _LABEL_EXTENSIONS.index(extension)


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[bytes | None, str | None]:
    try:
        file = tar.extractfile(member)
        return (file.read(), None) if file is not None else (None, UNREADABLE)
    except _TAR_ERRORS:
        return None, UNREADABLE


def _label_of(data: bytes, extension: str) -> tuple[str | None, str | None]:
    """Label and split in a ``.cls`` or ``.txt`` (one line of text or a number) or a ``.json`` member."""
    text = data.decode("utf-8", "replace").strip()
    if extension != "json":
        return (text or None) if "\n" not in text else None, None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(values, dict):
        return None, None
    label, split = values.get("label"), values.get("split")
    is_label = isinstance(label, str | int) and not isinstance(label, bool)
    return str(label) if is_label else None, split if isinstance(split, str) else None
