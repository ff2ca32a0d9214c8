"""Zip archives as folders, read in place: nothing is unpacked to disk."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from fsspec.implementations.zip import ZipFileSystem

from raydapt.errors import UserError

ZIP_SUFFIX = ".zip"
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError)
"""Of members: damaged, of an unknown compression, or with a password."""
_PREFIX = "zip://"
_WINDOWS = (0, 10)
"""Of the systems that a member may say it was made on: FAT and NTFS."""


def is_zip(filesystem: Any) -> bool:
    """Whether a file system is the inside of an archive."""
    return isinstance(filesystem, ZipFileSystem)


def separate_by_slashes(filesystem: ZipFileSystem) -> None:
    """Names with backslashes, as old programs of Windows wrote them, become paths; others stay what they are.

    Which names are: those of archives that were made on Windows, or that have no slash at all.
    """
    archive = filesystem.zip
    infos = archive.infolist()
    slashless = not any("/" in info.filename for info in infos)
    for info in infos:
        name = info.filename.replace("\\", "/")
        if name not in archive.NameToInfo and (slashless or info.create_system in _WINDOWS):
            archive.NameToInfo[name] = archive.NameToInfo.pop(info.filename)
            info.filename = name


def inside(address: str) -> str:
    """The address of what is in an archive."""
    return f"{_PREFIX}::{address}"


def address_in_zip(filesystem: ZipFileSystem, path: str) -> str:
    """The address that fsspec turns into this file system and path."""
    given = filesystem.storage_options
    protocol, target = given.get("target_protocol") or "file", str(given["fo"])
    where = target if protocol == "file" or "://" in target else f"{protocol}://{target}"
    return f"{_PREFIX}{path.strip('/')}::{where}"


def members(filesystem: ZipFileSystem, below: str) -> Iterator[tuple[str, int, str]]:
    """Name relative to a folder, size and checksum of every file in it, folder by folder, names sorted.

    Raises:
        UserError: If the files are encrypted.
    """
    prefix = f"{below.strip('/')}/" if below.strip("/") else ""
    found = []
    for info in filesystem.zip.infolist():
        if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16) or not info.filename.startswith(prefix):
            continue
        if info.flag_bits & 1:
            raise UserError(
                f"{address_in_zip(filesystem, '')!r} is encrypted: unpack it with its password and give the folder."
            )
        found.append((info.filename[len(prefix) :], info.file_size, f"{info.CRC:08x}"))
    yield from sorted(found, key=lambda member: member[0].split("/"))


def forget_archives() -> None:
    """Lets archives that were opened before be opened anew: they may have been replaced meanwhile."""
    ZipFileSystem.clear_instance_cache()
