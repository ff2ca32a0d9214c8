"""One string to an image set: planned without reading an image, read in parts of bounded size."""

import difflib
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from raydapt.data import digits, files, folders, hub, tables, webdataset
from raydapt.data.named_sets import NamedSet, named_set, set_names
from raydapt.data.parts import ROW_SCHEMA, UNREADABLE, Part, Source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings

__all__ = ["ROW_SCHEMA", "UNREADABLE", "Part", "Source", "group_parts", "read_label_names", "read_part", "read_parts",
           "resolve_source"]  # fmt: skip


def resolve_source(source: str, *, rows_per_part: int, limit: int | None = None) -> Source:
    """Finds out what a source is and plans its parts.

    Args:
        source: A folder of class folders (also within ``train``, ``val``, ``test``), a flat folder, a Parquet file or a
            folder of them, WebDataset tars (a file, a folder, ``x-{0000..0009}.tar``), a folder that ``datasets`` wrote
            with ``save_to_disk``, any of these under an fsspec or pyarrow URL (``s3://``, ``gs://``, ``memory://``),
            ``hf://datasets/ORGANISATION/NAME``, ``digits``, or a named set. A named set is looked up as
            ``$RAYDAPT_DATA/<name>.parquet`` or ``$RAYDAPT_DATA/<name>/``, then at its hub address.
        rows_per_part: Most rows that a part has, where parts can be cut at all.
        limit: Keep the first rows alone.

    Raises:
        UserError: For an unknown name, a missing path, or a place without images.
    """
    if source == "digits":
        return digits.plan(rows_per_part=rows_per_part, limit=limit)
    known = named_set(source)
    address = _address_of_set(known) if known else _checked_address(source)
    found = hub.list_hub(address) if address.startswith("hf://") else files.list_data(address)
    if found.tables:
        return tables.plan(found, rows_per_part=rows_per_part, limit=limit)
    if found.tars:
        return webdataset.plan(found, rows_per_part=rows_per_part, limit=limit)
    if found.images:
        return folders.plan(found, rows_per_part=rows_per_part, limit=limit)
    raise UserError(
        f"data.source={source!r}: no images found in {address!r}; expected image files "
        f"({', '.join(files.IMAGE_SUFFIXES)}), Parquet files or WebDataset tars."
    )


def group_parts(parts: Sequence[Part]) -> list[tuple[Part, ...]]:
    """Puts together the consecutive parts that are best read in one go: pieces of the same row group."""
    return [tuple(group) for _, group in groupby(parts, key=_read_together)]


def read_parts(parts: Sequence[Part], data: DataSettings) -> Iterator[tuple[Part, pa.Table]]:
    """Reads parts one after the other; a row group that several of them share is gone through once.

    Yields:
        Each part with its table of `ROW_SCHEMA`: row (number in the source), id, image (encoded bytes, null in bad
        rows), label, split, path, error (one of `raydapt.data.decode.BAD_IMAGE_REASONS`, or ``unreadable``). What
        cannot be read is a row with an error, never an exception.
    """
    for group in group_parts(parts):
        if group[0].kind in ("parquet", "arrow"):
            yield from tables.read(group, data.max_image_bytes)
            continue
        for part in group:
            if part.kind == "files":
                yield part, folders.read(part, data.max_image_bytes)
            elif part.kind == "tar":
                yield part, webdataset.read(part, data.max_image_bytes)
            else:
                yield part, digits.read(part, data.max_image_bytes)


def read_part(part: Part, data: DataSettings) -> pa.Table:
    """Reads one part, see `read_parts`."""
    return next(read_parts([part], data))[1]


def read_label_names(source: Source) -> tuple[str, ...]:
    """The label names of a source: as planned, else by going through its labels (not through its images).

    Numbers are sorted as numbers, everything else as text.

    Raises:
        UserError: If there are so many different labels that they cannot be class names.
    """
    if source.label_names or not source.has_labels:
        return source.label_names
    names = webdataset.label_names(source) if source.kind == "tar" else tables.label_names(source)
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def _read_together(part: Part) -> tuple[object, ...]:
    if part.kind == "arrow":
        return part.root, part.uris
    return (part.root, part.uris, part.groups) if part.kind == "parquet" else (part.index,)


def _address_of_set(known: NamedSet) -> str:
    folder = os.environ.get("RAYDAPT_DATA", "")
    if folder:
        for candidate in (Path(folder) / f"{known.name}.parquet", Path(folder) / known.name):
            if candidate.exists():
                return str(candidate)
    if known.hub:
        return known.hub
    where = f"RAYDAPT_DATA={folder!r} has no {known.name}.parquet" if folder else "RAYDAPT_DATA is not set"
    raise UserError(
        f"data.source={known.name}: {where}, and this set has no address on a hub: "
        f"set RAYDAPT_DATA to the folder that holds {known.name}.parquet, or give the path of the images."
    )


def _checked_address(source: str) -> str:
    if not source.strip():
        raise UserError("data.source is empty: give a folder, a file, a URL or a named set such as digits.")
    if "://" in source or files.is_pattern(source) or Path(source).expanduser().exists():
        return source
    if "/" in source or os.sep in source or "." in source:
        raise UserError(f"data.source={source!r} does not exist: check the path.")
    near = difflib.get_close_matches(source.lower(), set_names(), n=1, cutoff=0.0)
    raise UserError(f"data.source={source!r} is neither a path nor a named set: did you mean {near[0]!r}?")
