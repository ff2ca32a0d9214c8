"""Images in the tar archives of WebDataset: ``key.jpg`` beside ``key.cls``, ``key.txt`` or ``key.json``.

Archives are streamed; nothing is ever extracted to disk, and links in them are not followed.
"""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from raydapt.data.files import Found, Listing, is_local, open_filesystem, split_of_name
from raydapt.data.formats import IMAGE_SUFFIXES, say_left_out
from raydapt.data.parts import (
    UNKNOWN_ROWS_STRIDE,
    UNREADABLE,
    Part,
    RowLabels,
    Source,
    make_rows,
    new_digest,
    printable,
)
from raydapt.data.tar_samples import TAR_ERRORS, Sample, samples_of
from raydapt.errors import UserError

_MOST_LABEL_NAMES = 100_000
_LATEST: dict[str, RowLabels] = {}
"""What was read last, by its digest: going through the headers of 50,000 images takes seconds."""


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
    told: _Told | None = _Told()
    left_out: Counter[str] = Counter()
    for tar in found.tars:
        digest.update(tar.line)
        seekable = _is_seekable(filesystem, tar.name)
        if not seekable and limit is None:
            digest.update(b"names with several dots are names\n")
            first_row = (len(parts) + 1) * UNKNOWN_ROWS_STRIDE
            parts.append(_part(found, tar, len(parts), (0, None), first_row, None))
            has_labels, told = True, None
            continue
        left = None if limit is None else limit - rows
        index = _index(filesystem, f"{root}/{tar.name}", left, left_out)
        offsets = index.offsets
        if index.dotted:
            digest.update(b"names with several dots are names\n")
        has_labels |= any(label is not None for label in index.told.labels)
        if told is not None:
            told.add(index.told, tar.name)
        count = len(offsets) if left is None else min(len(offsets), left)
        for first, last in _cuts(offsets, count, rows_per_part if seekable else max(count, 1)):
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
    label_identity = "" if told is None else told.digest()
    if told is not None and label_identity:
        _remember(label_identity, told)
    return Source(
        uri=found.uri,
        kind="tar",
        parts=tuple(parts),
        rows=rows if known else None,
        identity=digest.hexdigest(),
        has_labels=has_labels,
        label_counts=None if told is None else _counts(told.labels),
        label_identity=label_identity,
        notes=(note,) if (note := say_left_out(left_out)) else (),
        splits=tuple(sorted({split for tar in found.tars if (split := split_of_name(tar.name))})),
    )


@dataclass(kw_only=True)
class _Told:
    """What samples say of themselves, in the order of the archives."""

    labels: list[str | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)

    def add(self, more: "_Told", tar_name: str) -> None:
        """Takes the samples of an archive, whose name tells the split of those that tell none."""
        of_tar = split_of_name(tar_name)
        self.labels += more.labels
        self.splits += [split or of_tar for split in more.splits]

    def digest(self) -> str:
        """Of labels and splits; empty where there are none."""
        if not any(text is not None for text in (*self.labels, *self.splits)):
            return ""
        return hashlib.sha256(json.dumps([self.labels, self.splits]).encode()).hexdigest()


def _counts(labels: Sequence[str | None]) -> tuple[tuple[str, int], ...] | None:
    counts = Counter(label for label in labels if label is not None)
    return None if len(counts) > _MOST_LABEL_NAMES else tuple(sorted(counts.items()))


def _remember(label_identity: str, told: _Told) -> RowLabels:
    _LATEST.clear()
    return _LATEST.setdefault(label_identity, RowLabels(labels=told.labels, splits=told.splits))


def read_row_labels(source: Source) -> RowLabels | None:
    """The labels and splits of all rows as they were planned; None where going through them reads all images.

    An archive that was written again in place, with the size and time that it had, is known by nothing else.

    Raises:
        UserError: If an archive is no longer what was planned.
    """
    if source.rows is None or not source.label_identity:
        return None
    if source.label_identity in _LATEST:
        return _LATEST[source.label_identity]
    filesystem, root = open_filesystem(source.parts[0].root)
    rows: Counter[str] = Counter()
    for part in source.parts:
        rows[part.uris[0]] += part.rows or 0
    told = _Told()
    for name, count in rows.items():
        told.add(_index(filesystem, f"{root}/{name}", count, Counter()).told, name)
    if told.digest() != source.label_identity:
        raise UserError(f"data.source={source.uri!r} changed while it was read: run the same command again.")
    return _remember(source.label_identity, told)


def read(part: Part, max_bytes: int) -> pa.Table:
    """Reads the samples of a part; what is missing at the end of a broken archive is rows with an error."""
    filesystem, root = open_filesystem(part.root)
    name = part.uris[0]
    samples: list[Sample] = []
    broken = False
    try:
        with _open_tar(filesystem, f"{root}/{name}", part.start) as tar:
            for sample in samples_of(tar, max_bytes):
                if len(samples) == part.rows:
                    break
                samples.append(sample)
    except TAR_ERRORS:
        broken = True
    missing = (part.rows or 0) - len(samples) if part.rows is not None else int(broken)
    samples += [Sample(key="", offset=0, path=f"#{len(samples) + i}", error=UNREADABLE) for i in range(missing)]
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


def listed_names(source: Source) -> tuple[str, ...]:
    """The names in ``classnames.txt`` beside or above the archives, as CLIP-benchmark writes it; () without one."""
    filesystem, root = open_filesystem(source.parts[0].root)
    for folder in (root, root.rpartition("/")[0]):
        try:
            text = bytes(filesystem.cat_file(f"{folder}/classnames.txt")).decode("utf-8-sig")
        except (OSError, ValueError):
            continue
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    return ()


def label_names(source: Source) -> set[str]:
    """All labels in the archives; images are skipped, not read, where the archive can be gone through like that."""
    filesystem, root = open_filesystem(source.parts[0].root)
    names: set[str] = set()
    for uri in dict.fromkeys(part.uris[0] for part in source.parts):
        try:
            with _open_tar(filesystem, f"{root}/{uri}", 0) as tar:
                names.update(sample.label for sample in samples_of(tar, 0) if sample.label is not None)
        except TAR_ERRORS:
            continue  # its images will be rows with errors
    return names


class _Index(NamedTuple):
    """What going through the headers of an archive tells."""

    offsets: list[int]
    """First byte of every sample; ascending, equal for samples that can only be read together."""
    told: _Told
    """Labels and splits of the samples that were asked for."""
    dotted: bool
    """Whether there are samples that WebDataset's own rule would not have found."""


def _index(filesystem: Any, path: str, most: int | None, left_out: Counter[str]) -> _Index:
    """Goes through an archive up to `most` samples and one more."""
    found = _Index([], _Told(), False)
    try:
        with _open_tar(filesystem, path, 0) as tar:
            for sample in samples_of(tar, 0, left_out):
                found.offsets.append(sample.offset)
                if most is None or len(found.offsets) <= most:
                    found.told.labels.append(None if sample.label is None else printable(sample.label))
                    found.told.splits.append(None if sample.split is None else printable(sample.split))
                found = found._replace(dotted=found.dotted or sample.dotted)
                if most is not None and len(found.offsets) > most:
                    break
    except TAR_ERRORS as error:
        if not found.offsets:
            raise UserError(f"{path!r} is no tar archive that can be read ({error}).") from None
    return found


def _cuts(offsets: list[int], count: int, step: int) -> Iterator[tuple[int, int]]:
    """Pieces of at most `step` samples, larger where samples can only be read together."""
    first = 0
    while first < count:
        last = min(first + step, count)
        while last < count and offsets[last] == offsets[last - 1]:
            last += 1
        yield first, last
        first = last


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
