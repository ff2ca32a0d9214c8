"""The artefact store: what a stage made, committed part by part, shared by all runs.

``<root>/<kind>/<fingerprint>/part-00012.parquet`` is one committed part, ``manifest.json`` is written last. Present
and valid means done; anything else is made again, and no more than what is missing or damaged. A shard carries its
part number, its number of rows and its errors in its own footer, so a killed driver needs nothing but the shards.
"""

import hashlib
import json
import re
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from raydapt.errors import UserError
from raydapt.store.fingerprint import SCHEMA_VERSION, Recipe, canonical_json, plain
from raydapt.store.folder import Folder

MANIFEST = "manifest.json"
_FOOTER = b"raydapt"
_GROUP_BYTES = 1024**2
_WHOLE_BYTES = 8 * 1024**2
"""Shards up to here are read as a whole, in one request; of larger ones no more than the columns that are wanted."""
_LATE_S = 60.0
"""As long may the list of files that a network's disk shows be out of date (NFS: acdirmax)."""
_KIND = re.compile(r"[a-z][a-z0-9_]{0,40}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_SHARD = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One committed part: its file, rows, size, checksum and what its summary said."""

    name: str
    part: int
    rows: int
    bytes: int
    sha256: str
    errors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The last word on an artefact; its ``rows`` and ``errors`` count over all shards, whenever they were made."""

    kind: str
    fingerprint: str
    schema_version: int
    settings: dict[str, Any]
    inputs: list[str]
    weights: str
    rows: int
    errors: dict[str, int]
    shards: list[Shard]
    stats: dict[str, Any]
    versions: dict[str, str | None]
    created: str


class Store:
    """A folder of artefacts at any local path or fsspec URL."""

    def __init__(self, root: str) -> None:
        """Names the place; nothing is read or written yet."""
        self.root = Folder(root, setting="store")

    def artefact(self, kind: str, fingerprint_: str) -> "Artefact":
        """The artefact of that name, whether or not anything of it exists.

        Raises:
            ValueError: For a kind or fingerprint that is not the program's own spelling.
        """
        if not _KIND.fullmatch(kind) or not _FINGERPRINT.fullmatch(fingerprint_):
            raise ValueError(f"not an artefact's name: {kind!r}, {fingerprint_!r}")
        return Artefact(self.root.child(kind, fingerprint_), kind, fingerprint_)

    def artefact_of(self, recipe: Recipe) -> "Artefact":
        """The artefact that the recipe makes."""
        return self.artefact(recipe.kind, recipe.fingerprint)


class Artefact:
    """One artefact: a writer of parts until the manifest stands, a reader from then on."""

    def __init__(self, folder: Folder, kind: str, fingerprint_: str) -> None:
        self.folder, self.kind, self.fingerprint = folder, kind, fingerprint_
        self._verified: dict[int, Shard] = {}

    def __repr__(self) -> str:
        return f"Artefact({self.kind}/{self.fingerprint} in {self.folder.url})"

    def lock(self, *, wait: bool = True) -> AbstractContextManager[None]:
        """Holds the artefact for one writing process (see `Folder.lock`)."""
        return self.folder.lock(wait=wait)

    def find_manifest(self) -> Manifest | None:
        """The manifest if a readable one of this artefact stands; its shards are not looked at."""
        try:
            manifest = TypeAdapter(Manifest).validate_json(self.folder.read(MANIFEST))
        except (FileNotFoundError, ValidationError):
            return None
        named = (manifest.kind, manifest.fingerprint, manifest.schema_version)
        return manifest if named == (self.kind, self.fingerprint, SCHEMA_VERSION) else None

    @property
    def manifest(self) -> Manifest:
        """The manifest of a finished artefact.

        Raises:
            RuntimeError: If the artefact is not finished.
        """
        manifest = self.find_manifest()
        if manifest is None:
            raise RuntimeError(f"{self!r} is not finished")
        return manifest

    def complete(self) -> bool:
        """Whether the manifest stands and every shard is there in its full size."""
        manifest = self.find_manifest()
        if manifest is None:
            return False
        sizes = self.folder.sizes()
        return all(sizes.get(shard.name) == shard.bytes for shard in manifest.shards)

    def committed_parts(self) -> set[int]:
        """The parts that need not be made again; every shard is read and checked, once in this process.

        A shard counts if its footer, its page checksums and its number of rows are right, and, where a manifest
        lists it, its SHA-256. Others are removed, together with a manifest that no longer tells the truth.
        """
        listed = self.find_manifest()
        sha256_of = {shard.part: shard.sha256 for shard in listed.shards} if listed else {}
        present = {int(match[1]) for name in self.folder.sizes() if (match := _SHARD.fullmatch(name))}
        for part in sorted(present - set(self._verified)):
            shard = _verify(self.folder.read(_shard_name(part)), part)
            if shard is None or sha256_of.get(part, shard.sha256) != shard.sha256:
                self.discard(part)
            else:
                self._verified[part] = shard
        self._verified = {part: shard for part, shard in self._verified.items() if part in present}
        return set(self._verified)

    def commit_part(self, index: int, table: pa.Table, errors: Mapping[str, int] | None = None) -> Shard:
        """Commits one part: from now on it is there as a whole, and it is not made again.

        Args:
            index: The part's number.
            table: Its rows, in their final order.
            errors: Rows in error by reason, to be summed up in the manifest.

        Raises:
            UserError: If the storage refuses; nothing of the part remains then.
        """
        note = {"part": index, "rows": table.num_rows, "errors": dict(errors or {})}
        metadata = {**(table.schema.metadata or {}), _FOOTER: canonical_json(note).encode()}
        sink = pa.BufferOutputStream()
        pq.write_table(
            table.replace_schema_metadata(metadata),
            sink,
            compression="zstd",
            write_page_checksum=True,
            row_group_size=_rows_of_group(table.schema),
        )
        data = sink.getvalue().to_pybytes()
        self.folder.write(_shard_name(index), data)
        self._verified[index] = _shard_of(data, index, table.num_rows, note["errors"])
        return self._verified[index]

    def note_part(self, shard: Shard) -> None:
        """Takes a part into account that this process, or an actor of it, has committed."""
        self._verified[shard.part] = shard

    def committed_errors(self) -> dict[str, int]:
        """Rows in error by reason, over the parts that stand (call `committed_parts` first)."""
        return _sum(shard.errors for shard in self._verified.values())

    def committed_rows(self) -> int:
        """Rows of the parts that stand (call `committed_parts` first)."""
        return sum(shard.rows for shard in self._verified.values())

    def finish(
        self, recipe: Recipe, parts: Iterable[int], stats: Mapping[str, Any], versions: Mapping[str, str | None]
    ) -> Manifest:
        """Writes the manifest over exactly these parts; the artefact is done with it.

        Raises:
            RuntimeError: If one of the parts has not been committed.
            UserError: If the storage lacks one, as where a node sees another folder under the same name.
        """
        wanted = sorted(set(parts))
        if missing := [part for part in wanted if part not in self._verified]:
            raise RuntimeError(f"{self!r}: parts {missing[:5]} are not committed")
        shards = [self._verified[part] for part in wanted]
        self._require_present(shards)
        manifest = Manifest(
            kind=self.kind,
            fingerprint=self.fingerprint,
            schema_version=SCHEMA_VERSION,
            settings=plain(recipe.settings),
            inputs=list(recipe.inputs),
            weights=recipe.weights,
            rows=sum(shard.rows for shard in shards),
            errors=_sum(shard.errors for shard in shards),
            shards=shards,
            stats=dict(stats),
            versions=dict(versions),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.folder.write(MANIFEST, json.dumps(asdict(manifest), indent=1, allow_nan=False).encode())
        return manifest

    def _require_present(self, shards: Sequence[Shard]) -> None:
        """Refuses shards that others wrote and this process does not find; a network's disk may be late."""
        until = time.monotonic() + _LATE_S
        while lost := _lost(shards, self.folder.sizes()):
            if time.monotonic() > until:
                raise UserError(
                    f"Setting {self.folder.setting}={self.folder.url!r} is not the same place on every node: "
                    f"{len(lost)} of {len(shards)} parts that were written are not there, such as {lost[0]!r}. Give "
                    "one that all nodes share, then run the same command again."
                )
            time.sleep(1.0)

    def discard(self, part: int) -> None:
        """Forgets a damaged part, and the manifest that vouched for it, so that the next run makes it again."""
        self.folder.remove(MANIFEST)
        self.folder.remove(_shard_name(part))
        self._verified.pop(part, None)

    def iter_tables(self, columns: Sequence[str] | None = None, *, optional: Sequence[str] = ()) -> Iterator[pa.Table]:
        """The rows of a finished artefact, one shard at a time, in the order of the parts.

        Args:
            columns: That are read; None: all.
            optional: Read as well, where the shard has them: earlier releases did not write them.

        Raises:
            UserError: If a shard turns out to be damaged; it is set aside, and the same command makes it again.
        """
        for shard in self.manifest.shards:
            with self._damage_told(shard):
                if columns is None or shard.bytes <= _WHOLE_BYTES:
                    yield _read_table(self.folder.read(shard.name), columns, optional)
                else:
                    with self.folder.open(shard.name) as handle:
                        yield _read_table(handle, columns, optional)

    def read_rows(self, shard: Shard, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Some rows of one shard of a finished artefact; may be called by several threads.

        Of rows as large as decoded images no more is read than the groups that these lie in (see `rows_of_group`).

        Args:
            shard: Of the manifest.
            start: First row, counted within the shard.
            stop: The row behind the last one.
            columns: That are read.

        Raises:
            UserError: As in `iter_tables`.
        """
        with self._damage_told(shard), self.folder.open(shard.name) as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            ends = list(accumulate(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)))
            first, last = bisect_right(ends, start), bisect_left(ends, stop)
            table = file.read_row_groups(range(first, last + 1), columns=list(columns), use_threads=False)
            before = ends[first - 1] if first else 0
            return table.slice(start - before, stop - start)

    @contextmanager
    def _damage_told(self, shard: Shard) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, pa.ArrowException, OSError) as error:
            self.discard(shard.part)
            raise UserError(
                f"Part {shard.name!r} of the stored {self.kind} {self.fingerprint} is damaged and was set aside: "
                "run the same command again to make that part anew."
            ) from error

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a finished artefact; meant for what fits in memory (see `iter_tables`)."""
        return pa.concat_tables(self.iter_tables(columns))


DECODED_BYTES = b"decoded_bytes"
"""Metadata of a column of encoded values: the size of each of them when it is decoded."""


def rows_of_group(row_bytes: int) -> int:
    """Rows of a group of a shard, which is read as a whole: so many that it has about 1 MiB."""
    return max(1, _GROUP_BYTES // row_bytes)


def _rows_of_group(schema: pa.Schema) -> int | None:
    """For a table with a column of values of a fixed size, such as pixels, or of what is decoded to such; else None."""
    widths = [field.type.byte_width for field in schema if pa.types.is_fixed_size_binary(field.type)]
    widths += [int(field.metadata[DECODED_BYTES]) for field in schema if DECODED_BYTES in (field.metadata or {})]
    return rows_of_group(max(widths)) if widths else None


def _lost(shards: Iterable[Shard], bytes_of: Mapping[str, int]) -> list[str]:
    return [shard.name for shard in shards if bytes_of.get(shard.name) != shard.bytes]


def _shard_name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _shard_of(data: bytes, part: int, rows: int, errors: dict[str, int]) -> Shard:
    digest = hashlib.sha256(data).hexdigest()
    return Shard(name=_shard_name(part), part=part, rows=rows, bytes=len(data), sha256=digest, errors=errors)


def _read_table(data: bytes | IO[bytes], columns: Sequence[str] | None, optional: Sequence[str] = ()) -> pa.Table:
    """Of the bytes of a shard, or of a shard that is open."""
    source = pa.BufferReader(data) if isinstance(data, bytes) else data
    wanted = list(columns) if columns is not None else None
    if wanted is not None and optional:
        there = set(pq.read_schema(source).names)
        wanted += [name for name in optional if name in there]
        source.seek(0)
    return pq.read_table(source, columns=wanted, page_checksum_verification=True)


def _verify(data: bytes, part: int) -> Shard | None:
    """The shard if its bytes are whole: footer, our note in it, page checksums, rows."""
    try:
        table = _read_table(data, None)
        note = json.loads((table.schema.metadata or {})[_FOOTER])
        sound = note["part"] == part and note["rows"] == table.num_rows
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    return _shard_of(data, part, table.num_rows, note["errors"]) if sound else None


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished artefact, and whether it had been there already."""

    artefact: Artefact
    reused: bool
