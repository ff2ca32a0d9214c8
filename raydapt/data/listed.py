"""Images that a text file names: CSV, TSV or JSON lines with a path and perhaps a label in every row.

A path may be written as people write them: relative to the file, to any folder above the images, with or without the
suffix (Kaggle's ids), or as it was on another machine. A name that fits several images is refused, not guessed.
"""

import csv
import hashlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.data import folders
from raydapt.data.files import (
    Found,
    Listing,
    address_of,
    first_line,
    is_local,
    list_data,
    open_filesystem,
    split_of_name,
)
from raydapt.data.layouts import label_and_split, layout_of, split_name
from raydapt.data.parts import Source
from raydapt.data.row_columns import NoPathColumnError, RowColumns, find_row_columns, is_image_name
from raydapt.data.zips import is_zip
from raydapt.errors import UserError

METADATA = "metadata"
"""What Hugging Face calls the file that tells of the images in its folder (``imagefolder``)."""
_MOST_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class NamedImage:
    """A row of a list: an image of the listing with what the list tells of it."""

    uri: str
    label: str | None
    split: str | None


@dataclass
class _Names:
    """The image files of a listing by all that people may call them."""

    paths: set[str]
    by_name: dict[str, list[str]] = field(default_factory=dict)
    by_stem: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.paths:
            name = posixpath.basename(path)
            self.by_name.setdefault(name, []).append(path)
            self.by_stem.setdefault(posixpath.splitext(name)[0], []).append(path)

    def find(self, given: str, folder: str) -> list[str]:
        """The images that a row may mean; one where it is clear, none where there is none."""
        beside = posixpath.normpath(posixpath.join(folder, given)).lstrip("/")
        if beside in self.paths:
            return [beside]
        wanted = posixpath.normpath(given).strip("/")
        for known in (self.by_name, self.by_stem):
            same = known.get(posixpath.basename(wanted), [])
            without = known is self.by_stem
            found = [path for path in same if _ends_alike(posixpath.splitext(path)[0] if without else path, wanted)]
            if found:
                return sorted(found)
        return []


def _ends_alike(path: str, wanted: str) -> bool:
    """Whether one of two paths is the end of the other, folder by folder."""
    short, long = sorted((path.split("/"), wanted.split("/")), key=len)
    return long[-len(short) :] == short


def plan_lists(found: Listing, source: str, *, rows_per_part: int, limit: int | None) -> Source:
    """Plans the images that one or more lists name; other images of the folder are not used, which is said.

    Args:
        found: A listing with the lists; the images are looked for in their folder.
        source: As the user wrote it.
        rows_per_part: Rows of a part.
        limit: Keep the first rows alone.

    Raises:
        UserError: If a file is no list, names no image that is there, or an image twice with different labels.
    """
    images = found if found.images else list_data(found.root)
    names = _Names(set(images.images))
    notes: list[str] = []
    rows: list[NamedImage] = []
    refused: UserError | None = None
    for table in found.lists:
        try:
            read, said = _read(found, table, names, source)
        except UserError as error:
            if len(found.lists) == 1:
                raise
            refused, notes = refused or error, [*notes, f"{table.name} was left out: {error}"]
            continue
        rows += read
        notes += said
    if not rows and refused is not None:
        raise refused
    chosen = _once(rows, source)
    left = len(names.paths - {row.uri for row in chosen})
    if left:
        others = "1 image is" if left == 1 else f"{left:,} images are"
        notes.append(f"{others} there that no row of the list names, and not used.")
    return _planned(images, found.uri, chosen, notes, rows_per_part=rows_per_part, limit=limit)


def plan_metadata(
    found: Listing, tables: Sequence[Found], source: str, *, rows_per_part: int, limit: int | None
) -> Source | None:
    """Plans the images of a folder with what its ``metadata`` files tell of them; None if they tell no label or split.

    Images that no row names keep what their folders tell, unless labels come from the files.
    """
    names = _Names(set(found.images))
    layout = layout_of(found.images)
    told: dict[str, NamedImage] = {}
    labelled = split = False
    for table in tables:
        try:
            columns, cells = _cells(found, table, source)
        except NoPathColumnError:  # a table of something else that is only called so
            continue
        labelled |= columns.label is not None
        split |= columns.split is not None
        folder = posixpath.dirname(table.name)
        for given, label, part in cells:
            for uri in names.find(given, folder)[:1]:
                told[uri] = NamedImage(uri=uri, label=label, split=part)
    if not told or not (labelled or split):
        return None
    rows = []
    for uri in found.images:
        of_folder = label_and_split(uri, layout)
        row = told.get(uri)
        label = (row.label if row else None) if labelled else of_folder[0]
        rows.append(NamedImage(uri=uri, label=label, split=(row.split if row else None) or of_folder[1]))
    what = " and ".join(word for word, has in (("labels", labelled), ("splits", split)) if has)
    missing = len(rows) - len(told)
    without = f"; {missing:,} images are in no row of it" if missing else ""
    notes = [f"The {what} come from {tables[0].name}{without}."]
    return _planned(found, found.uri, rows, notes, rows_per_part=rows_per_part, limit=limit)


def is_metadata(table: Found) -> bool:
    """Whether a file is called as Hugging Face's ``imagefolder`` wants its metadata called."""
    return posixpath.basename(table.name).rpartition(".")[0].lower() == METADATA


def say_lists(found: Listing) -> str:
    """A sentence for lists beside image folders, whose labels the images may have; empty for none."""
    beside = [table.name for table in found.lists if not is_metadata(table)]
    if not beside:
        return ""
    filesystem, root = open_filesystem(found.root)
    shown = address_of(filesystem, f"{root}/{beside[0]}") if is_zip(filesystem) else beside[0]
    return f"{shown!r} beside the images was not read: give its path as data.source if it names images and labels."


def _planned(
    images: Listing,
    uri: str,
    rows: Sequence[NamedImage],
    notes: Sequence[str],
    *,
    rows_per_part: int,
    limit: int | None,
) -> Source:
    labels = hashlib.sha256()
    listing = Listing(uri=uri, root=images.root, images=[row.uri for row in rows], image_digest=images.image_digest)
    for row in rows:
        labels.update(f"{json.dumps([row.uri, row.label, row.split])}\n".encode())
        listing.image_digest.update(f"{json.dumps(row.uri)}{_stamp_outside(images, row.uri)}\n".encode())
    told = {row.uri: (row.label, row.split) for row in rows}
    source = folders.plan(listing, rows_per_part=rows_per_part, limit=limit, told=told)
    return replace(source, notes=tuple(notes), label_identity=labels.hexdigest())


def _stamp_outside(images: Listing, uri: str) -> str:
    """Size and time of an image that the listing, whose digest has those of all others, does not have."""
    if not uri.startswith("../"):
        return ""
    status = (Path(images.root) / uri).stat()
    return f" {status.st_size} {status.st_mtime_ns}"


def _once(rows: Sequence[NamedImage], source: str) -> list[NamedImage]:
    """Every image once; a list may have a row for each object of an image."""
    known: dict[str, NamedImage] = {}
    for row in rows:
        before = known.setdefault(row.uri, row)
        if before != row:
            raise UserError(
                f"data.source={source!r} names {row.uri!r} twice, as {before.label or before.split!r} and as "
                f"{row.label or row.split!r}: an image has one class and one split; correct the list, or give the "
                "folder of the images."
            )
    return list(known.values())


def _read(found: Listing, table: Found, names: _Names, source: str) -> tuple[list[NamedImage], list[str]]:
    """The images that a list names, and what is to be said of its rows."""
    columns, cells = _cells(found, table, source)
    folder, of_name = posixpath.dirname(table.name), split_of_name(table.name)
    rows: list[NamedImage] = []
    missing: list[str] = []
    given_rows = list(cells)
    for given, label, split in given_rows:
        uris = _of_split(names.find(given, folder), of_name) or _elsewhere(found, given)
        if len(uris) > 1:
            raise UserError(
                f"data.source={source!r} names {given!r}, which may be {uris[0]!r} or {uris[1]!r}: write paths that "
                f"are relative to {found.root!r}."
            )
        if not uris:
            missing.append(given)
        rows += [NamedImage(uri=uri, label=label, split=split or of_name) for uri in uris or [given]]
    if len(missing) == len(given_rows):
        raise UserError(_none_there(found, given_rows, source))
    notes = [columns.note] if columns.note else []
    if missing:
        lacking = "1 row names" if len(missing) == 1 else f"{len(missing):,} rows name"
        notes.append(f"{lacking} no image that is there, such as {missing[0]!r}.")
    return _with_folders(rows, columns), notes


def _of_split(uris: list[str], split: str | None) -> list[str]:
    """Of several images with one name those in the folder of the list's split: ``train.csv`` means ``train/1.jpg``."""
    if len(uris) < 2 or split is None:
        return uris
    return [uri for uri in uris if split in map(split_name, uri.split("/")[:-1])] or uris


def _with_folders(rows: list[NamedImage], columns: RowColumns) -> list[NamedImage]:
    """What the folders tell where the list has no column for it."""
    layout = layout_of([row.uri for row in rows])
    told = [label_and_split(row.uri, layout) for row in rows]
    return [
        NamedImage(uri=row.uri, label=row.label if columns.label is not None else label, split=row.split or split)
        for row, (label, split) in zip(rows, told, strict=True)
    ]


def _none_there(found: Listing, rows: Sequence[tuple[str, str | None, str | None]], source: str) -> str:
    if not rows:
        return f"data.source={source!r} has no rows: give a list that names images."
    given = rows[0][0]
    if "://" in given:
        return (
            f"data.source={source!r} names addresses such as {given!r}: fetch the images first, for example with "
            "img2dataset, and give what it wrote."
        )
    return (
        f"data.source={source!r} names no image that is there, such as {given!r}: the images are looked for in "
        f"{found.root!r} and the folders in it; put the list beside them, or write paths relative to it."
    )


def _elsewhere(found: Listing, given: str) -> list[str]:
    """An image of this machine outside the folder of its list."""
    filesystem, root = open_filesystem(found.root)
    if "://" in given or not is_local(filesystem) or not is_image_name(given):
        return []
    path = os.path.normpath(os.path.join(root, os.path.expanduser(given)))  # noqa: PTH111, PTH118 - as written
    return [os.path.relpath(path, root)] if os.path.isfile(path) else []  # noqa: PTH113


Cells = Iterator[tuple[str, str | None, str | None]]


def _cells(found: Listing, table: Found, source: str) -> tuple[RowColumns, Cells]:
    """The columns of a list, and path, label and split of its rows."""
    filesystem, root = open_filesystem(found.root)
    path = f"{root.rstrip('/')}/{table.name}"
    try:
        if table.size > _MOST_BYTES:
            raise UserError(f"data.source={source!r}: {table.name!r} is larger than 2 GiB: give it as Parquet.")
        header, rows = _rows_of(filesystem, path)
    except UnicodeDecodeError:
        raise UserError(
            f"data.source={source!r}: {table.name!r} is not UTF-8, so its labels would be read wrongly: save it as "
            "UTF-8."
        ) from None
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(
            f"data.source={source!r}: {table.name!r} cannot be read as a table ({first_line(error)}): correct it."
        ) from None
    columns = find_row_columns(header, rows, where=table.name)
    return columns, _picked(columns, rows)


def _picked(columns: RowColumns, rows: Iterable[Sequence[str | None]]) -> Cells:
    for row in rows:
        given = (row[columns.path] or "").strip()
        if not given:
            continue
        label = (row[columns.label] or "").strip() if columns.label is not None else ""
        split = (row[columns.split] or "").strip() if columns.split is not None else ""
        yield given.replace("\\", "/"), label or None, split_name(split) if split else None


def _rows_of(filesystem: Any, path: str) -> tuple[list[str] | None, list[list[str | None]]]:
    """The header (None where the first row is one of images) and the rows, all of one length."""
    lower = path.lower()
    if lower.endswith(".parquet"):
        with filesystem.open(path, "rb") as handle:
            read = pq.read_table(handle)
        flat = [name for name in read.column_names if not pa.types.is_nested(read.schema.field(name).type)]
        columns = [[None if value is None else str(value) for value in read[name].to_pylist()] for name in flat]
        return flat, [list(row) for row in zip(*columns, strict=True)]
    text = bytes(filesystem.cat_file(path)).decode("utf-8-sig")
    if lower.endswith((".jsonl", ".ndjson")):
        return _json_rows(text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first, _, rest = text.partition("\n")
    separator = "\t" if lower.endswith(".tsv") else max(",;\t|", key=first.count)
    if told := re.fullmatch(r"sep=(.)", first.strip(), re.IGNORECASE):  # as Excel writes
        separator, text = told[1], rest
    rows: list[list[str | None]] = [[*row] for row in csv.reader(io.StringIO(text), delimiter=separator) if row]
    if not rows:
        raise ValueError("it is empty")
    wide = len(rows[0])
    uneven = next((row for row in rows if len(row) != wide), None)
    if uneven is not None:
        raise ValueError(f"a row has {len(uneven)} cells where the first has {wide}: {str(uneven)[:80]}")
    if any(is_image_name(cell or "") for cell in rows[0]):
        return None, rows
    return [cell or "" for cell in rows[0]], rows[1:]


def _json_rows(text: str) -> tuple[list[str], list[list[str | None]]]:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its lines are no JSON objects")
    rows = [{name: _only_one(value) for name, value in row.items()} for row in rows]
    names = list(
        dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict | list))
    )
    return names, [[_text(row.get(name)) for name in names] for row in rows]


def _only_one(value: Any) -> Any:
    """What a list of one holds, as tools for several labels write one; anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)
