"""A folder on any file system, with writes that are whole or absent.

The one place that knows a local disk from an object store. Locally a file is written beside its final name, flushed
to the disk and renamed; on an object store (and in ``memory://``) a put is atomic by itself.
"""

import errno
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from filelock import FileLock, Timeout
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from raydapt.errors import UserError

_TEMPORARY = ".tmp-"
_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLIENTS = ("botocore", "aiobotocore", "gcsfs", "google")
"""Packages whose errors, such as missing credentials, are no `OSError`."""


class Folder:
    """A folder named by a path or URL; it comes into being with its first file.

    Attributes:
        url: What the user wrote, for messages.
        path: The path within the file system.
        local: Whether it lies on a disk of this machine.
        shared: Whether other processes see what one writes; not so in ``memory://``.
    """

    def __init__(self, url: str, *, setting: str) -> None:
        """Resolves the URL without touching the place.

        Args:
            url: A local path or any fsspec URL (``s3://…``, ``gs://…``, ``memory://…``).
            setting: The setting that holds the URL, named in error sentences.

        Raises:
            UserError: If no file system answers to the URL.
        """
        self.url, self.setting = str(url), setting
        try:
            self._fs, path = _open(self.url)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(f"Setting {setting}={self.url!r} names no usable storage ({error}).") from None
        self.path = str(path).rstrip("/") or "/"
        self.local = isinstance(self._fs, LocalFileSystem)
        self.shared = not isinstance(self._fs, MemoryFileSystem)

    def child(self, *names: str) -> "Folder":
        """A folder further down; names are the program's own, never the user's text."""
        folder = Folder(self.url, setting=self.setting)
        folder.path = "/".join([self.path, *names])
        return folder

    def file(self, name: str) -> str:
        """The path of a file of this folder within its file system."""
        return f"{self.path}/{name}"

    def address(self, name: str) -> str:
        """The path of a file as people open it: with its protocol, unless it lies on a local disk."""
        path = self.file(name)
        return path if self.local else str(self._fs.unstrip_protocol(path))

    def arrow_filesystem(self) -> FileSystem | None:
        """The file system of `path` as pyarrow's, for Ray Train; None for a local disk."""
        if self.local:
            return None
        return self._fs.fs if isinstance(self._fs, ArrowFSWrapper) else PyFileSystem(FSSpecHandler(self._fs))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file as a whole: after a crash it is there entirely or not at all.

        Raises:
            UserError: If the place cannot be written or is full; nothing partial remains.
        """
        with self._told():
            if self.local:
                self._write_local(name, data)
            else:
                self._put(name, data)

    def append(self, name: str, data: bytes) -> None:
        """Adds to the end of a small log; on an object store the file is written anew."""
        with self._told():
            if self.local:
                target = Path(self.file(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("ab") as stream:
                    stream.write(data)
            else:
                before = self.read(name) if self.exists(name) else b""
                self._put(name, before + data)

    def read(self, name: str) -> bytes:
        """The bytes of a file; `FileNotFoundError` when it is absent."""
        with self._told(reading=True):
            data: bytes = self._fs.cat_file(self.file(name))
        return data

    def open(self, name: str) -> IO[bytes]:
        """A file to read parts of; `FileNotFoundError` when it is absent."""
        with self._told(reading=True):
            handle: IO[bytes] = self._fs.open(self.file(name), "rb")
        return handle

    def read_json(self, name: str) -> Any:
        """The parsed JSON of a file."""
        return json.loads(self.read(name))

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        with self._told(reading=True):
            return bool(self._fs.exists(self.file(name)))

    def sizes(self) -> Mapping[str, int]:
        """The files directly in this folder and their sizes in bytes; empty when there is no folder."""
        with self._told(reading=True):
            self._fs.invalidate_cache(self.path)
            try:
                found = self._fs.ls(self.path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        return {str(item["name"]).rsplit("/", 1)[-1]: int(item["size"]) for item in found if item["type"] == "file"}

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        with self._told():
            try:
                self._fs.rm_file(self.file(name))
            except FileNotFoundError:
                return

    def make(self) -> None:
        """Creates the folder, so that an unwritable place is told before any work is done."""
        with self._told():
            if self.local:
                probe = Path(self.path) / f"{_TEMPORARY}{os.getpid()}-probe"
                probe.parent.mkdir(parents=True, exist_ok=True)
                probe.touch()
                probe.unlink()

    @contextmanager
    def lock(self, *, wait: bool) -> Iterator[None]:
        """Holds this folder for one process; the lock ends with its process, however that ends.

        Object stores have no locks: there two writers commit the same content under the same names.

        Args:
            wait: Wait for the other process, or refuse at once.

        Raises:
            UserError: If the folder is held and ``wait`` is false.
        """
        if not self.local:
            yield
            return
        self.make()
        lock = FileLock(self.file(_LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise UserError(
                    f"Another raydapt process is at work in {self.path!r}: let it finish, then run the command again."
                ) from None
            sys.stderr.write(f"waiting for another raydapt process that is at work in {self.path}\n")
            lock.acquire()
        try:
            self._sweep()
            yield
            self._sweep()  # of workers that were killed meanwhile
        finally:
            lock.release()

    def held(self) -> bool | None:
        """Whether a process holds this folder; None where nobody can tell, on an object store."""
        if not self.local:
            return None
        if not Path(self.file(_LOCK)).exists():
            return False
        lock = FileLock(self.file(_LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _sweep(self) -> None:
        """Removes what killed writers left half-written; the lock is held, so nothing that is wanted is among it."""
        for name in self.sizes():
            if name.startswith(_TEMPORARY):
                self.remove(name)

    def _put(self, name: str, data: bytes) -> None:
        try:
            self._fs.pipe_file(self.file(name), data)
        except FileNotFoundError:  # unlike object stores, this file system has real folders
            self._fs.makedirs(self.path, exist_ok=True)
            self._fs.pipe_file(self.file(name), data)

    def _write_local(self, name: str, data: bytes) -> None:
        target = Path(self.file(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{target.name}")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(target.parent)

    @contextmanager
    def _told(self, *, reading: bool = False) -> Iterator[None]:
        """Turns a refusal of the file system into a sentence; a missing file stays what it is when reading."""
        verb = "read" if reading else "written"
        try:
            yield
        except FileNotFoundError:
            if reading:
                raise
            raise UserError(f"Setting {self.setting}={self.url!r} cannot be written: give another place.") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if error.errno in _FULL:
                raise UserError(
                    f"The storage of {self.setting}={self.url!r} is full ({reason}): free space or give another place, "
                    "then run the same command again; what was committed is kept."
                ) from error
            raise UserError(
                f"Setting {self.setting}={self.url!r} cannot be {verb} ({reason}): give another place."
            ) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            raise UserError(
                f"Setting {self.setting}={self.url!r} cannot be {verb} ({error}): give this machine the storage's "
                "credentials and address, or give another place."
            ) from error


def _open(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, or pyarrow's where fsspec lacks a package (such as s3fs)."""
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError:
        filesystem, path = FileSystem.from_uri(url)
        return ArrowFSWrapper(filesystem), path


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
