"""Folders of image files: flat, with class folders, with split folders, or with class folders in split folders."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa

from raydapt.data.files import Listing, is_local, open_filesystem
from raydapt.data.layouts import FLAT, check_layout, describe_layout, label_and_split, layout_of
from raydapt.data.parts import UNREADABLE, Part, RowLabels, Source, make_rows, new_digest
from raydapt.data.zips import ZIP_ERRORS

_REMOTE_READERS = 16
"""Files read at a time where each of them costs a round trip."""


Told = Mapping[str, tuple[str | None, str | None]]
"""Label and split by the name of the file."""


def plan(found: Listing, *, rows_per_part: int, limit: int | None, told: Told | None = None) -> Source:
    """Cuts the list of files into parts; what is `told` of them counts instead of what their folders mean."""
    layout = layout_of(found.images) if told is None else FLAT
    check_layout(found.images, layout)
    names = found.images[:limit]
    digest = new_digest(rows_per_part, limit)
    digest.update(found.image_digest.hexdigest().encode())
    parts = []
    for index, start in enumerate(range(0, len(names), rows_per_part)):
        uris = tuple(islice(names, start, start + rows_per_part))
        of_rows = () if told is None else tuple(told[uri] for uri in uris)
        parts.append(
            Part(index=index, kind="files", root=found.root, uris=uris, layout=layout, told=of_rows, first_row=start,
                 rows=len(uris))
        )  # fmt: skip
    labels: Counter[str] = Counter()
    splits: set[str | None] = set()
    for index, name in enumerate(found.images):
        label, split = label_and_split(name, layout) if told is None else told[name]
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
        notes=(note,) if told is None and (note := describe_layout(found.images, layout)) else (),
        splits=tuple(sorted(split for split in splits if split is not None)),
    )


def read_row_labels(source: Source) -> RowLabels:
    """The labels and splits that the names of the files, or the list that names them, give."""
    told = [one for part in source.parts for one in _told(part)]
    return RowLabels(labels=[label for label, _ in told], splits=[split for _, split in told])


def _told(part: Part) -> Sequence[tuple[str | None, str | None]]:
    """Label and split of every file of a part."""
    return part.told or [label_and_split(name, part.layout) for name in part.uris]


def read(part: Part, max_bytes: int) -> pa.Table:
    """Reads the files of a part; one that cannot be read is a row with an error."""
    filesystem, root = open_filesystem(part.root)

    results = read_files(filesystem, [f"{root.rstrip('/')}/{name}" for name in part.uris], max_bytes)
    told = _told(part)
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
        except (OSError, ValueError, pa.ArrowException, *ZIP_ERRORS):
            return None, UNREADABLE

    if is_local(filesystem):
        return [read_one(path) for path in paths]
    with ThreadPoolExecutor(_REMOTE_READERS) as readers:
        return list(readers.map(read_one, paths))
