"""Fingerprints: the name of an artefact is a digest of everything that its content depends on."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
"""Raised when the content or the layout of artefacts changes: older ones are then made again."""


def canonical_json(value: Any) -> str:
    """JSON that is the same for equal values: sorted keys, no spaces, whole floats written as integers.

    Raises:
        TypeError: For a value that JSON cannot hold.
        ValueError: For NaN and infinities.
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(kind: str, settings: Mapping[str, Any], inputs: Sequence[str], weights: str = "") -> str:
    """The name of an artefact: 16 hex digits of a SHA-256 over everything that its content depends on.

    Args:
        kind: What it is, such as ``features``.
        settings: The settings that matter (dataclasses and nested mappings are fine).
        inputs: Identities of the inputs, in order: a source's identity or fingerprints of other artefacts.
        weights: Identity of the model's weights.
    """
    text = canonical_json([SCHEMA_VERSION, kind, settings, list(inputs), weights])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def files_digest(paths: Iterable[Path], folder: Path) -> str:
    """A SHA-256 over files: their names within `folder`, sizes and contents, wherever the folder lies.

    Args:
        paths: The files, in an order of their own.
        folder: What all of them lie in.
    """
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}:{found.st_size}:".encode())
        digest.update(_file_digest(path.resolve(), found.st_size, found.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, modified_ns: int) -> bytes:
    """Of gigabytes of weights, which several steps of a run name, once per process as long as they stay as they are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the content of an artefact depends on (see `fingerprint`)."""

    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    weights: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        return fingerprint(self.kind, self.settings, self.inputs, self.weights)


def plain(value: Any) -> Any:
    """The same value in mappings, lists and scalars alone; a whole float is an integer: 1.0 and 1 are one setting."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value
