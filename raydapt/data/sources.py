"""One string to an image set: planned without reading an image, read in parts of bounded size."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from raydapt.data import digits, embeddings, files, folders, hub, listed, tables, webdataset
from raydapt.data.columns import NoImageColumnError
from raydapt.data.files import Listing
from raydapt.data.formats import IMAGE_SUFFIXES, say_left_out
from raydapt.data.named_sets import NamedSet, named_set, set_names
from raydapt.data.parts import ROW_SCHEMA, UNREADABLE, Part, RowLabels, Source
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings

__all__ = ["ROW_SCHEMA", "UNREADABLE", "Part", "RowLabels", "Source", "check_source", "group_parts", "read_label_names",
           "read_part", "read_parts", "read_row_labels", "resolve_source"]  # fmt: skip
_CLOSE = 0.7
"""Likeness (difflib) from which on a name is taken for a mistyped one."""


def resolve_source(source: str, *, rows_per_part: int, limit: int | None = None) -> Source:
    """Finds out what a source is and plans its parts.

    Args:
        source: A folder of class folders (also within ``train``, ``val``, ``test``), a flat folder, a zip archive of
            either, a CSV, TSV or JSON lines file that names images, a Parquet file or a folder of them, WebDataset
            tars (a file, a folder, ``x-{0000..0009}.tar``), a folder that ``datasets`` wrote with ``save_to_disk``,
            features in place of images (see `raydapt.data.embeddings`), any of these under an
            fsspec or pyarrow URL (``s3://``, ``gs://``, ``memory://``), ``hf://datasets/ORGANISATION/NAME``,
            ``digits``, or a named set. A named set is looked up as ``$RAYDAPT_DATA/<name>.parquet`` or
            ``$RAYDAPT_DATA/<name>/``, then at its hub address.
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
    if found.zips and not (found.tables or found.tars or found.images or found.arrays):
        found = _only_archive(found, source)
    if embeddings.holds_features(found):
        return embeddings.plan(found, rows_per_part=rows_per_part, limit=limit)
    if found.lists and not (found.tables or found.tars or found.images):
        return listed.plan_lists(found, source, rows_per_part=rows_per_part, limit=limit)
    planned, aside = _plan(found, source, rows_per_part, limit)
    left_out = say_left_out(found.left_out)
    if planned is None:
        raise UserError(
            f"data.source={source!r}: no images found in {address!r}; expected image files "
            f"({', '.join(IMAGE_SUFFIXES)}), Parquet files, WebDataset tars, a zip archive, or a CSV, TSV or JSON "
            f"lines file that names images{'; ' if left_out else '.'}{left_out}"
        )
    return replace(planned, notes=(*(note for note in (left_out, *aside) if note), *planned.notes))


def _only_archive(found: Listing, source: str) -> Listing:
    if len(found.zips) > 1:
        raise UserError(
            f"data.source={source!r} holds {len(found.zips)} zip archives, such as {found.zips[0].name!r}: give one of "
            "them, or unpack them."
        )
    return files.list_data(f"{found.root.rstrip('/')}/{found.zips[0].name}")


def _plan(found: Listing, source: str, rows_per_part: int, limit: int | None) -> tuple[Source | None, list[str]]:
    """Decides which of the kinds of files that lie together are the images; what is set aside is told.

    Tables come first, then tars, then image files; but tables that hold no images are none, and at least two folders of
    image files come before archives, and before tables of fewer rows, which are then what they were unpacked from.
    """
    aside = []
    planned: Source | None = None
    in_folders = bool(found.images) and found.is_class_folders
    if found.tables:
        try:
            planned = tables.plan(found, rows_per_part=rows_per_part, limit=limit)
        except NoImageColumnError:
            if not found.tars and not found.images:
                raise
            aside.append(_say_aside(len(found.tables), "table without images", "tables without images"))
        if planned and in_folders and (planned.rows or 0) < len(found.images) and not planned.names_files:
            aside.append(_say_aside(len(found.tables), "table", "tables"))
            planned = None
    if planned is None and found.tars and not in_folders:
        planned = webdataset.plan(found, rows_per_part=rows_per_part, limit=limit)
    elif found.tars:
        aside.append(_say_aside(len(found.tars), "archive", "archives"))
    if found.zips:
        aside.append(_say_aside(len(found.zips), "zip archive", "zip archives"))
    if planned is None and found.images:
        planned = _plan_images(found, source, rows_per_part, limit)
        aside += [said] if (said := listed.say_lists(found)) else []
    elif found.images and not (planned and planned.names_files):
        aside.append(_say_aside(len(found.images), "image file", "image files"))
    return planned, aside


def _plan_images(found: Listing, source: str, rows_per_part: int, limit: int | None) -> Source:
    """Image files, with what Hugging Face's ``metadata`` beside them tells, else with what their folders mean."""
    metadata = [table for table in (*found.lists, *found.tables) if listed.is_metadata(table)]
    planned = None
    if metadata:
        planned = listed.plan_metadata(found, metadata, source, rows_per_part=rows_per_part, limit=limit)
    if planned is None and _are_shards(found):
        nothing = dict.fromkeys(found.images, (None, None))
        planned = folders.plan(found, rows_per_part=rows_per_part, limit=limit, told=nothing)
        planned = replace(planned, notes=("The folders are img2dataset's shards, and no classes.",))
    return planned or folders.plan(found, rows_per_part=rows_per_part, limit=limit)


def _are_shards(found: Listing) -> bool:
    """Whether the folders of images are those that img2dataset writes: ``00000/`` beside ``00000.parquet``."""
    tops = {name.partition("/")[0] for name in found.images}
    tables_ = {table.name.removesuffix(".parquet") for table in found.tables}
    return bool(tops) and tops <= tables_ and all(top.isdecimal() for top in tops)


def _say_aside(count: int, one: str, many: str) -> str:
    """A sentence for files that are not the images, though they could be."""
    what = f"1 {one} beside the images was" if count == 1 else f"{count:,} {many} beside the images were"
    return f"{what} set aside: give a pattern or another folder to data.source if they are what is meant."


def check_source(source: str) -> None:
    """Looks a source up by its name or path without listing it, so that a mistyped one is answered at once.

    Raises:
        UserError: For an unknown name or a missing path.
    """
    if source == "digits":
        return
    known = named_set(source)
    if known:
        _address_of_set(known)
    else:
        _checked_address(source)


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
        if group[0].kind == embeddings.KIND:
            raise UserError(
                f"{group[0].uris[0]!r} holds features, and this looks at images: give these as data.source."
            )
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


def read_row_labels(source: Source) -> RowLabels | None:
    """The labels and splits of a source as they are now; None where they cannot change without its identity.

    Raises:
        UserError: If they can no longer be read.
    """
    if source.kind in ("parquet", "arrow"):
        return tables.read_row_labels(source)
    if source.kind == "tar":
        return webdataset.read_row_labels(source)
    return folders.read_row_labels(source) if source.kind == "files" else None


def read_label_names(source: Source) -> tuple[str, ...]:
    """The label names of a source: as planned, else by going through its labels (not through its images).

    Numbers are sorted as numbers, everything else as text.

    Raises:
        UserError: If there are so many different labels that they cannot be class names.
    """
    if source.label_names or not source.has_labels:
        return source.label_names
    if source.label_counts is not None:
        names = {label for label, _ in source.label_counts}
    else:
        own = {"tar": webdataset.label_names, embeddings.KIND: embeddings.label_names}
        names = own.get(source.kind, tables.label_names)(source)
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
    near = difflib.get_close_matches(source.lower(), ("digits", *set_names()), n=1, cutoff=_CLOSE)
    hint = f"did you mean {near[0]!r}?" if near else "check the path, or give a named set such as digits or eurosat."
    raise UserError(f"data.source={source!r} is neither a path nor a named set: {hint}")
