"""What every kind of source is planned into, and the table that reading a part gives."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa

from raydapt.data.decode import image_id

Kind = Literal["files", "parquet", "arrow", "tar", "digits", "features"]
UNREADABLE = "unreadable"
UNKNOWN_ROWS_STRIDE = 1 << 32
"""Distance of the first row numbers of parts whose sizes are not known beforehand."""

ROW_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("image", pa.large_binary()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The unit of reading, committing and resuming: some rows of a source, always the same ones."""

    index: int
    """Position among the parts of the source."""
    kind: Kind
    root: str
    """Folder (files) or address that `uris` are relative to; an absolute path or an fsspec URL."""
    uris: tuple[str, ...] = ()
    """The image files, or the one file that holds the rows; of features, behind it the file that tells of them."""
    start: int = 0
    """First row in the file (parquet, arrow, digits) or first byte in the archive (tar)."""
    stop: int | None = None
    """End of the range that begins at `start`; None: to the end."""
    first_row: int
    """Number of the first row in the source."""
    rows: int | None
    """Number of rows; None when only reading tells (compressed or remote archives)."""
    groups: tuple[int, int] = (0, 0)
    """Parquet: the row groups that hold the rows. A part is either whole row groups or a piece of a single one."""
    layout: str = ""
    """Files: what the folders mean, see `raydapt.data.folders.label_and_split`."""
    told: tuple[tuple[str | None, str | None], ...] = ()
    """Files that a list names: label and split of each; () where the folders tell."""
    width: int = 0
    """Features: values in a row."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """An image set as it was found. Planning it reads listings, footers and headers, no images."""

    uri: str
    """Where the images are: an absolute path or an fsspec URL."""
    kind: Kind
    parts: tuple[Part, ...]
    rows: int | None
    """Number of images; None when only reading tells."""
    identity: str
    """sha256 of what was listed (names, sizes, time stamps or Parquet footers) and of the way it is cut into parts."""
    label_names: tuple[str, ...] = ()
    """Names of the class folders or of the Parquet schema's classes; () if none, or known only from reading."""
    label_counts: tuple[tuple[str, int], ...] | None = None
    """Images of each label, sorted by label; None where only reading tells, or where they are too many to be names."""
    label_identity: str = ""
    """Digest of the labels and splits of tables, which `identity` does not cover; empty for all other sources."""
    notes: tuple[str, ...] = ()
    """What a person must know of the images that were found, such as files that were left out; plain sentences."""
    names_files: bool = False
    """Whether images are files that a table names."""
    has_labels: bool = False
    """Whether some images may have labels."""
    splits: tuple[str, ...] = ()
    """Names of the split folders or files; () if none, or known only from reading."""
    has_ids: bool = False
    """Whether features come with ids of their own."""
    width: int = 0
    """Values of a feature where the source holds features in place of images; 0 for images."""


@dataclass(frozen=True, kw_only=True)
class RowLabels:
    """The labels and splits of a source as they are now, by row number."""

    labels: Sequence[str | None]
    splits: Sequence[str | None]


class Digest(Protocol):
    """The part of hashlib's objects that is used here."""

    def update(self, data: bytes, /) -> None:
        """Takes more bytes."""
        ...

    def hexdigest(self) -> str:
        """The digest so far."""
        ...


def new_digest(rows_per_part: int, limit: int | None) -> Digest:
    """Begins the identity of a source."""
    return hashlib.sha256(f"raydapt source 1, parts of {rows_per_part}, limit {limit}\n".encode())


def make_rows(
    part: Part,
    images: Sequence[bytes | None],
    paths: Sequence[str],
    *,
    max_bytes: int,
    labels: Sequence[str | None] | None = None,
    splits: Sequence[str | None] | None = None,
    errors: Sequence[str | None] | None = None,
) -> pa.Table:
    """Builds the table of a part (`ROW_SCHEMA`); what is empty, too large or unreadable has an `error` and no image."""
    nothing = [None] * len(images)
    kept: list[bytes | None] = []
    reasons: list[str | None] = []
    for image, error in zip(images, errors or nothing, strict=True):
        reason = error or _reason(image, max_bytes)
        reasons.append(reason)
        kept.append(None if reason else image)
    shown = [printable(path) for path in paths]
    columns: dict[str, Iterable[Any]] = {
        "row": range(part.first_row, part.first_row + len(kept)),
        "id": [image_id(image if image is not None else f"{part.root}/{path}".encode("utf-8", "replace"))
               for image, path in zip(kept, shown, strict=True)],
        "image": kept,
        "label": [None if label is None else printable(label) for label in labels or nothing],
        "split": [None if split is None else printable(split) for split in splits or nothing],
        "path": shown,
        "error": reasons,
    }  # fmt: skip
    return pa.table([pa.array(columns[field.name], field.type) for field in ROW_SCHEMA], schema=ROW_SCHEMA)


def printable(text: str) -> str:
    """File names may hold bytes that are no UTF-8; they are shown escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _reason(image: bytes | None, max_bytes: int) -> str | None:
    if not image:
        return "empty"
    return "too_many_bytes" if len(image) > max_bytes else None
