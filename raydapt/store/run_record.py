"""The folder of one run. Everything that raydapt commits to disk goes through `Run` and `Store`."""

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.store.folder import Folder


class Run:
    """The folder of one run; its files are written whole (see `Folder.write`).

    Attributes:
        name: The folder's name, made safe.
        path: Its path (a local path, or the path within the object store).
    """

    def __init__(self, root: str, name: str) -> None:
        """Names the folder; nothing is written yet.

        Args:
            root: Setting ``runs``: a local path or any fsspec URL.
            name: Name of the run; characters that do not belong into a path are replaced.
        """
        self.name = safe_name(name)
        self.folder = Folder(root, setting="runs").child(self.name)

    @classmethod
    def at(cls, path: str) -> "Run":
        """The run in a folder that a person named, however it is called."""
        run = cls.__new__(cls)
        run.folder = Folder(path, setting="runs")
        run.name = run.folder.path.rpartition("/")[2]
        return run

    @property
    def path(self) -> str:
        """The folder's path within its file system."""
        return self.folder.path

    def make(self) -> None:
        """Creates the folder now, so that an unwritable one is told before any work is done."""
        self.folder.make()

    def lock(self, *, wait: bool = False) -> AbstractContextManager[None]:
        """Holds the folder for one process; a second one is refused in one sentence."""
        return self.folder.lock(wait=wait)

    def file(self, name: str) -> str:
        """The path of one of its files."""
        return self.folder.file(name)

    def exists(self, name: str) -> bool:
        """Whether the run has that file."""
        return self.folder.exists(name)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a file as a whole."""
        self.folder.write(name, data)

    def write_text(self, name: str, text: str) -> None:
        """Writes a UTF-8 file as a whole."""
        self.folder.write(name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file as a whole; NaN is refused, since it is not JSON."""
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes a Parquet file as a whole."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, bytes(sink.getvalue().to_pybytes()))

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        self.folder.remove(name)

    def append_jsonl(self, name: str, value: Mapping[str, Any]) -> None:
        """Adds one line of JSON to a log."""
        self.folder.append(name, (json.dumps(value, allow_nan=False) + "\n").encode())

    def read_bytes(self, name: str) -> bytes:
        """The bytes of a file; `FileNotFoundError` when it is absent."""
        return self.folder.read(name)

    def read_json(self, name: str) -> Any:
        """The parsed JSON of a file."""
        return self.folder.read_json(name)


def safe_name(text: str, limit: int = 120) -> str:
    """A name for one file or folder: ``[A-Za-z0-9._-]`` alone, no leading dot, bounded, never empty."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:limit]
    return name or "unnamed"


def run_name(method: str, dataset: str, paradigm: str, seed: int, fingerprint_: str) -> str:
    """The name of a run that was given none: readable, and the same for the same settings.

    Args:
        method: The setting ``method``.
        dataset: The setting ``data.source``; of a path or URL the last step is used.
        paradigm: The setting ``data.paradigm``.
        seed: The setting ``seed``.
        fingerprint_: Fingerprint of everything that matters; eight digits of it are shown.
    """
    short = safe_name(re.split(r"[/\\]", dataset.rstrip("/\\"))[-1], limit=40)
    return safe_name(f"{method}-{short}-{paradigm}-s{seed}-{fingerprint_[:8]}")
