"""Finding data files in a folder of any file system: local, or whatever fsspec or pyarrow can reach."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from raydapt.data.formats import IMAGE_SUFFIXES, kind_left_out
from raydapt.data.parts import Digest
from raydapt.data.zips import (
    ZIP_ERRORS,
    ZIP_SUFFIX,
    address_in_zip,
    forget_archives,
    inside,
    is_zip,
    members,
    separate_by_slashes,
)
from raydapt.errors import UserError

TABLE_SUFFIXES = (".parquet", ".arrow")
ARRAY_SUFFIXES = (".npy", ".npz")
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TRAIN_NAMES = frozenset({"train", "training", "trainval"})
UNLABELLED_NAMES = frozenset({"unlabeled", "unlabelled", "unsup", "extra", "pred", "prediction"})
SPLIT_NAMES = (
    *("train", "training", "val", "valid", "validation", "dev", "test", "testing"),
    *("trainval", "eval", "evaluation", "holdout"),
    *sorted(UNLABELLED_NAMES),
)
JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "@Recycle", "#snapshot", "@Recently-Snapshot",
                          "$RECYCLE.BIN", "$Recycle.Bin", "lost+found", "System Volume Information"})  # fmt: skip
"""Folders that systems put beside people's own, spelt as they do: thumbnails, forks and what was thrown away."""
_OWN_FOLDER = re.compile(r"[0-9a-f]{16}")
_OWN_PART = re.compile(r"part-\d{5,}\.parquet")
_MOST_PATTERN_FILES = 100_000
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


class Found(NamedTuple):
    """A data file, as its folder lists it."""

    name: str
    """Path relative to the root, with ``/``."""
    size: int
    """Bytes."""
    stamp: str
    """Entity tag or time of the last change; empty where the file system tells none."""

    @property
    def line(self) -> bytes:
        """What the identity of a source takes of the file."""
        return f"{self.name}\0{self.size}\0{self.stamp}\n".encode("utf-8", "surrogateescape")


@dataclass(kw_only=True)
class Listing:
    """The data files under a root, in a fixed order: folder by folder, names sorted."""

    uri: str
    """What was listed."""
    root: str
    """What names are relative to: an absolute path or an fsspec URL of a folder."""
    tables: list[Found] = field(default_factory=list)
    tars: list[Found] = field(default_factory=list)
    arrays: list[Found] = field(default_factory=list)
    """Of numpy: features, never images."""
    lists: list[Found] = field(default_factory=list)
    """Text tables that may name images."""
    zips: list[Found] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """Names alone: there may be millions."""
    image_digest: Digest = field(default_factory=hashlib.sha256)
    """Of the image files' names, sizes and stamps."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files that are not read, by kind, see `raydapt.data.formats.kind_left_out`."""

    @property
    def is_class_folders(self) -> bool:
        """Whether the image files lie in at least two folders and in none but these."""
        tops = {name.rpartition("/")[0] for name in self.images}
        return len(tops) > 1 and "" not in tops

    def add(self, found: Found) -> None:
        """Puts a file with its kind; what has none of the known suffixes is no data."""
        name = found.name.lower()
        if name.endswith(TABLE_SUFFIXES):
            if not PurePosixPath(name).name.startswith("cache-"):  # what `datasets` leaves beside its own files
                self.tables.append(found)
        elif name.endswith(TAR_SUFFIXES):
            self.tars.append(found)
        elif name.endswith(ARRAY_SUFFIXES):
            self.arrays.append(found)
        elif name.endswith(LIST_SUFFIXES):
            self.lists.append(found)
        elif name.endswith(ZIP_SUFFIX):
            self.zips.append(found)
        elif name.endswith(IMAGE_SUFFIXES):
            self.images.append(found.name)
            self.image_digest.update(found.line)
        elif kind := kind_left_out(found.name):
            self.left_out[kind] += 1


def list_data(address: str) -> Listing:
    """Lists the data files of a folder, of a pattern (``{0..9}``, ``*``), or the one file that `address` is.

    A zip archive is the folder of what is in it.

    Raises:
        UserError: For a path that does not exist or cannot be listed, or an address of no known file system.
    """
    filesystem, path = open_filesystem(address)
    try:
        if is_zip(filesystem) and filesystem.isdir(path):
            return _list_zip(filesystem, path, address)
        if is_pattern(address) and not filesystem.exists(path):
            return _list_pattern(filesystem, path, address)
        info = filesystem.info(path)
        if info["type"] == "directory":
            listing = Listing(uri=address_of(filesystem, path), root=address_of(filesystem, path))
            for found in _walk(filesystem, path, "", frozenset()):
                listing.add(found)
            return listing
        if path.lower().endswith(ZIP_SUFFIX) and not is_zip(filesystem):
            return list_zip(address_of(filesystem, path))
        folder, _, name = path.rpartition("/")
        listing = Listing(uri=address_of(filesystem, path), root=address_of(filesystem, folder or "/"))
        listing.add(Found(name, int(info["size"] or 0), _stamp(info)))
    except FileNotFoundError:
        raise UserError(f"data.source={address!r} does not exist: check the path.") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"data.source={address!r} cannot be listed ({first_line(error)}): check the address.") from None
    return listing


def list_zip(address: str) -> Listing:
    """Lists what is in a zip archive.

    Raises:
        UserError: If it is damaged or encrypted.
    """
    forget_archives()
    try:
        filesystem, path = open_filesystem(inside(address))
    except (*ZIP_ERRORS, OSError) as error:
        raise UserError(
            f"data.source={address!r} is no zip archive that can be read ({first_line(error)}): fetch it again."
        ) from None
    return _list_zip(filesystem, path, address)


def _list_zip(filesystem: Any, path: str, uri: str) -> Listing:
    listing = Listing(uri=uri, root=address_in_zip(filesystem, path))
    for name, size, checksum in members(filesystem, path):
        if not any(part.startswith(".") or part in JUNK_FOLDERS for part in name.split("/")):
            listing.add(Found(name, size, checksum))
    return listing


def open_filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address and the path in it.

    A protocol for which fsspec lacks a package, such as ``s3://``, falls back to pyarrow's file systems.

    Raises:
        UserError: If neither knows the protocol.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(os.path.expanduser(address))  # noqa: PTH111 - may be a URL
    except (ImportError, ValueError) as error:
        try:
            arrow, path = pyarrow.fs.FileSystem.from_uri(address)
        except (pa.ArrowException, ValueError, OSError):
            raise UserError(f"Address {address!r} has no file system here: {first_line(error)}.") from None
        filesystem = ArrowFSWrapper(arrow)
    if is_zip(filesystem):
        separate_by_slashes(filesystem)
    return filesystem, str(path).rstrip("/") or "/"


def address_of(filesystem: Any, path: str) -> str:
    """The address that `open_filesystem` turns into this file system and path."""
    if is_local(filesystem):
        return path
    if is_zip(filesystem):
        return address_in_zip(filesystem, path)
    if isinstance(filesystem, ArrowFSWrapper):
        return f"{filesystem.fs.type_name.replace('gcs', 'gs')}://{path}"
    return str(filesystem.unstrip_protocol(path))


def is_local(filesystem: Any) -> bool:
    """Whether files are on this machine, where seeking is free."""
    return "file" in ((filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol)


def is_pattern(address: str) -> bool:
    """Whether an address stands for several files."""
    return "*" in address or _BRACES.search(address) is not None


def expand_braces(pattern: str) -> list[str]:
    """``x-{08..10}.tar`` to ``x-08.tar``, ``x-09.tar``, ``x-10.tar``, and ``{a,b}`` to ``a``, ``b``, as shells do."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    low, high, words = match.groups()
    if words is not None:
        choices = words.split(",")
    elif int(high) - int(low) >= _MOST_PATTERN_FILES:
        raise UserError(f"data.source={pattern!r} stands for more than {_MOST_PATTERN_FILES} files: give a folder.")
    else:
        width = len(low) if low.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(low), int(high) + 1)]
    tails = expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + choice + tail for choice in choices for tail in tails]


def split_of_name(name: str) -> str | None:
    """The split that a data file's name tells: ``data/train-00000-of-00002.parquet``, ``test/0000.parquet``."""
    path = PurePosixPath(name.lower())
    first_word = re.split(r"[-_.\d]", path.name, maxsplit=1)[0]
    return next((word for word in (first_word, path.parent.name) if word in SPLIT_NAMES), None)


def _list_pattern(filesystem: Any, path: str, address: str) -> Listing:
    paths = [p for one in expand_braces(path) for p in (sorted(filesystem.glob(one)) if "*" in one else [one])]
    if not paths:
        raise UserError(f"data.source={address!r} matches no file: check the pattern.")
    root = re.split(r"[*{]", path, maxsplit=1)[0].rpartition("/")[0]
    listing = Listing(uri=address_of(filesystem, path), root=address_of(filesystem, root or "/"))
    for one in paths:
        info = filesystem.info(one)
        if info["type"] == "file":
            listing.add(Found(one[len(root) :].lstrip("/"), int(info["size"] or 0), _stamp(info)))
    return listing


def _walk(filesystem: Any, root: str, below: str, above: frozenset[str]) -> Iterator[Found]:
    """Every file under ``root/below``; hidden ones and links that lead back to a folder above are left out."""
    folder = f"{root}/{below}" if below else root
    if is_local(filesystem):
        real = os.path.realpath(folder)
        if real in above:
            return
        above |= {real}
        entries = _scan_local(folder)
    else:
        entries = [
            (
                info["name"].rstrip("/").rpartition("/")[2],
                info["type"] == "directory",
                int(info.get("size") or 0),
                _stamp(info),
            )
            for info in filesystem.ls(folder, detail=True)
            if info["name"].strip("/") != folder.strip("/")
        ]
    if below and _is_own(below, [name for name, *_ in entries]):
        return
    for name, is_folder, size, stamp in sorted(entries):
        if name.startswith(".") or name in JUNK_FOLDERS:
            continue
        inner = f"{below}/{name}" if below else name
        if is_folder:
            yield from _walk(filesystem, root, inner, above)
        else:
            yield Found(inner, size, stamp)


def _is_own(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder was written by raydapt: a run, or an artefact of the store, finished or not."""
    if {"config.yaml", "fingerprint.json"} <= set(names):
        return True
    is_artefact = _OWN_FOLDER.fullmatch(folder.rpartition("/")[2]) is not None
    return is_artefact and any(name in ("manifest.json", ".lock") or _OWN_PART.fullmatch(name) for name in names)


def _scan_local(folder: str) -> list[tuple[str, bool, int, str]]:
    """As ``ls`` of fsspec, which needs a dictionary of a kilobyte for each of perhaps millions of files."""
    entries = []
    with os.scandir(folder) as scan:
        for entry in scan:
            try:
                status = entry.stat()
                entries.append((entry.name, entry.is_dir(), status.st_size, str(status.st_mtime_ns)))
            except OSError:  # a broken link: reading it will say so
                entries.append((entry.name, False, 0, ""))
    return entries


def _stamp(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "blob_id", "md5Hash", "mtime", "LastModified", "last_modified", "created"):
        if info.get(key):
            return str(info[key])
    return ""


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
