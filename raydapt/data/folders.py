"""Folders of image files: flat, with class folders, with split folders, or with class folders in split folders."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa

from raydapt.data.files import Listing, is_local, open_filesystem
from raydapt.data.layouts import check_layout, describe_layout, label_and_split, layout_of
from raydapt.data.parts import UNREADABLE, Part, RowLabels, Source, make_rows, new_digest

_REMOTE_READERS = 16
"""Files read at a time where each of them costs a round trip."""


def plan(found: Listing, *, rows_per_part: int, limit: int | None) -> Source:
    """Cuts the list of files into parts."""
    layout = layout_of(found.images)
    check_layout(found.images, layout)
    names = found.images[:limit]
    digest = new_digest(rows_per_part, limit)
    digest.update(found.image_digest.hexdigest().encode())
    parts = []
    for index, start in enumerate(range(0, len(names), rows_per_part)):
        uris = tuple(islice(names, start, start + rows_per_part))
        parts.append(
            Part(index=index, kind="files", root=found.root, uris=uris, layout=layout, first_row=start, rows=len(uris))
        )
    labels: Counter[str] = Counter()
    splits: set[str | None] = set()
    for index, name in enumerate(found.images):
        label, split = label_and_split(name, layout)
        splits.add(split)
        if label is not None:
            labels[label] += index < len(names)
    return Source(
        uri=found.uri,
        kind="files",
        parts=tuple(parts),
        rows=len(names),
        identity=digest.hexdigest(),
        label_counts=tuple(sorted((label, images) for label, images in labels.items() if images)),
        label_names=tuple(sorted(labels)),
        has_labels=bool(labels),
        notes=(note,) if (note := describe_layout(found.images, layout)) else (),
        splits=tuple(sorted(split for split in splits if split is not None)),
    )


def read_row_labels(source: Source) -> RowLabels:
    """The labels and splits that the names of the files give."""
    told = [label_and_split(name, part.layout) for part in source.parts for name in part.uris]
    return RowLabels(labels=[label for label, _ in told], splits=[split for _, split in told])


def read(part: Part, max_bytes: int) -> pa.Table:
    """Reads the files of a part; one that cannot be read is a row with an error."""
    filesystem, root = open_filesystem(part.root)

    results = read_files(filesystem, [f"{root.rstrip('/')}/{name}" for name in part.uris], max_bytes)
    told = [label_and_split(name, part.layout) for name in part.uris]
    return make_rows(
        part,
        [image for image, _ in results],
        part.uris,
        labels=[label for label, _ in told],
        splits=[split for _, split in told],
        errors=[error for _, error in results],
        max_bytes=max_bytes,
    )


def read_files(filesystem: Any, paths: Sequence[str], max_bytes: int) -> list[tuple[bytes | None, str | None]]:
    """The bytes of each file, never much more than `max_bytes` of them, or None and the reason."""

    def read_one(path: str) -> tuple[bytes | None, str | None]:
        try:
            with filesystem.open(path, "rb") as file:
                return bytes(file.read(max_bytes + 1)), None
        except (OSError, ValueError, pa.ArrowException):
            return None, UNREADABLE

    if is_local(filesystem):
        return [read_one(path) for path in paths]
    with ThreadPoolExecutor(_REMOTE_READERS) as readers:
        return list(readers.map(read_one, paths))
