"""The first half of an image stage: parts of a source are read and decoded by CPU tasks.

Legend: N images of a part, S image side in px.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydapt.artefacts.pixels import encoded
from raydapt.data.decode import JPEG_PX, BadImage, ImageSpec, decode_image, decode_measured, plain_jpeg_px
from raydapt.data.measures import MEASURES, Measures
from raydapt.data.sources import Part, group_parts, read_parts
from raydapt.settings.groups import DataSettings, PixelEncoding, RaySettings
from raydapt.stages.commit import PART, committed_row, with_part
from raydapt.store.artefact import Artefact

if TYPE_CHECKING:
    import ray.data

_MOST_THREADS = 8
_ROWS_PER_TASK = 32
PACKED = "packed"
"""Column of a whole part in one row, as an Arrow stream. The model's batches are then cut within a part, whatever else
is in flight: the same part gives the same bytes, on one actor or many, resumed or not."""


def dataset_of_images(
    parts: Sequence[Part],
    data: DataSettings,
    spec: ImageSpec,
    *,
    rows_per_part: int,
    ray_settings: RaySettings,
    commit: Artefact | None = None,
    encoding: PixelEncoding = "raw",
    measured: bool = False,
    for_device: bool = False,
) -> ray.data.Dataset:
    """A dataset of decoded images: each part in one row with the columns `PART` and `PACKED`.

    Parts that share a row group are read by one task, which reads the group once.

    Args:
        parts: What is read.
        data: Limits of decoding.
        spec: How images are prepared.
        rows_per_part: Images of a part.
        ray_settings: The nodes.
        commit: What the decoded parts are committed to instead; the rows tell of that (`committed_row`).
        encoding: How the pixels of committed parts are stored.
        measured: Whether the parts also have the columns `MEASURES`.
        for_device: Whether plain JPEGs stay encoded (`raydapt.data.decode_on_device`).

    Raises:
        UserError: When the cluster has no node to decode on.
    """
    import ray.data

    from raydapt.cluster.nodes import require_cpu

    nodes = require_cpu(ray_settings, ray_settings.decode_nodes, setting="ray.decode_nodes")
    items = [{"parts": pickle.dumps(group)} for group in group_parts(parts)]
    decode = partial(
        read_and_decode,
        data=data,
        spec=spec,
        commit=commit,
        encoding=encoding,
        measured=measured,
        for_device=for_device,
    )
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    # The decoded part, its packed copy, and as much for encoded bytes. Tasks with demands of their own are also what
    # keeps Ray from fusing them into the model's actors, which would leave the other CPUs idle.
    memory = 4 * part_bytes(rows_per_part, spec)
    return dataset.map_batches(
        decode, batch_size=1, batch_format="pyarrow", num_cpus=1, memory=memory, label_selector=nodes
    )


def part_bytes(rows: int, spec: ImageSpec) -> int:
    """Size of a decoded part."""
    return rows * 3 * spec.size_px**2


def read_and_decode(
    batch: pa.Table,
    *,
    data: DataSettings,
    spec: ImageSpec,
    commit: Artefact | None = None,
    encoding: PixelEncoding = "raw",
    measured: bool = False,
    for_device: bool = False,
) -> Iterator[pa.Table]:
    """Reads one group of parts and yields each part decoded and packed, or commits it."""
    parts: tuple[Part, ...] = pickle.loads(batch["parts"][0].as_py())
    for part, table in read_parts(parts, data):
        decoded = decode_table(table, data, spec, measured=measured, for_device=for_device)
        if commit is None:
            yield pack(part.index, decoded)
        else:
            yield committed_row(commit, with_part(encoded(decoded, encoding), part.index))


def decoded_here(
    parts: Sequence[Part], data: DataSettings, spec: ImageSpec, *, measured: bool = False, for_device: bool = False
) -> Iterator[tuple[int, pa.Table]]:
    """Reads parts and yields them decoded, by threads of this process: the next part is decoded meanwhile.

    Pillow leaves the interpreter to others while it decodes and resizes.
    """
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        waiting: tuple[int, _Decoding] | None = None
        for part, table in read_parts(parts, data):
            begun = part.index, _Decoding(table, data, spec, measured, for_device, threads)
            if waiting is not None:
                yield waiting[0], waiting[1].table()
            waiting = begun
        if waiting is not None:
            yield waiting[0], waiting[1].table()


def decode_table(
    table: pa.Table, data: DataSettings, spec: ImageSpec, *, measured: bool = False, for_device: bool = False
) -> pa.Table:
    """Replaces the column ``image`` (encoded bytes) by ``pixel`` (uint8 [3, S, S] as fixed binary).

    A row that cannot be decoded keeps its place, with the reason in ``error`` and a null pixel. Where `measured`, the
    columns `MEASURES` are added, null for such a row. Where it is `for_device`, plain JPEGs are left encoded for
    `raydapt.data.decode_on_device.DeviceDecoder`.
    """
    return _Decoding(table, data, spec, measured, for_device).table()


class _Decoding:
    """The decoding of one table, done at once or begun on threads."""

    def __init__(
        self,
        table: pa.Table,
        data: DataSettings,
        spec: ImageSpec,
        measured: bool = False,
        for_device: bool = False,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        self._table, self._data, self._spec = table, data, spec
        self._measures: list[Measures | None] | None = [None] * table.num_rows if measured else None
        self._pixel_N3SS = np.zeros((table.num_rows, 3, spec.size_px, spec.size_px), dtype=np.uint8)
        self._errors: list[str | None] = table["error"].to_pylist()
        self._px: list[int | None] | None = [None] * table.num_rows if for_device else None
        self._begun: list[Future[None]] = []
        if threads is None:
            self._decode(0, table.num_rows)
            return
        for start in range(0, table.num_rows, _ROWS_PER_TASK):
            self._begun.append(threads.submit(self._decode, start, min(start + _ROWS_PER_TASK, table.num_rows)))

    def _decode(self, start: int, stop: int) -> None:
        """Fills in some of the rows."""
        most = {"max_pixels": self._data.max_image_pixels, "max_bytes": self._data.max_image_bytes}
        for index in range(start, stop):
            if self._errors[index] is not None:
                continue
            try:
                image = self._table["image"][index].as_py()
                if self._px is not None:
                    self._px[index] = plain_jpeg_px(image, self._spec, **most)
                    if self._px[index]:
                        continue
                if self._measures is None:
                    self._pixel_N3SS[index] = decode_image(image, self._spec, **most)
                else:
                    self._pixel_N3SS[index], self._measures[index] = decode_measured(image, self._spec, **most)
            except BadImage as error:
                self._errors[index] = error.reason

    def table(self) -> pa.Table:
        """The result, once all of it is there."""
        for begun in self._begun:
            begun.result()
        valid = np.array([error is None for error in self._errors], dtype=bool)
        columns = self._table.drop_columns(["image", "error"])
        columns = columns.append_column("error", pa.array(self._errors, pa.string()))
        if self._measures is not None:
            for name in MEASURES:
                values = [None if of is None else getattr(of, name) for of in self._measures]
                columns = columns.append_column(
                    name, pa.array(values, pa.uint64() if name == "phash" else pa.float32())
                )
        if self._px is not None:
            return _left_encoded(columns, self._table["image"], self._px, self._pixel_N3SS)
        return columns.append_column("pixel", fixed_binary(self._pixel_N3SS, valid))


def _left_encoded(
    table: pa.Table,
    image_N: pa.ChunkedArray,
    px_N: Sequence[int | None],
    pixel_N3SS: np.ndarray[Any, np.dtype[np.uint8]],
) -> pa.Table:
    """A part for `raydapt.data.decode_on_device.DeviceDecoder`: bytes of what is left, pixels of what is decoded.

    Args:
        table: Its other columns.
        image_N: Encoded images.
        px_N: Width times height of those that are left.
        pixel_N3SS: Pixels of those that are decoded.
    """
    errors = table["error"].to_pylist()
    pixels = [
        None if px or error else pixel_3SS.tobytes()
        for px, error, pixel_3SS in zip(px_N, errors, pixel_N3SS, strict=True)
    ]
    px = pa.array(px_N, pa.int64())
    table = table.append_column("image", pc.if_else(px.is_valid(), image_N, pa.scalar(None, image_N.type)))
    return table.append_column(JPEG_PX, px).append_column("pixel", pa.array(pixels, pa.large_binary()))


def fixed_binary(value_N: np.ndarray[Any, np.dtype[np.uint8]], valid: np.ndarray[Any, np.dtype[np.bool_]]) -> pa.Array:
    """An Arrow column of equally long byte strings, one per leading index, without a copy."""
    width = int(np.prod(value_N.shape[1:]))
    mask = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    buffers = [mask, pa.py_buffer(np.ascontiguousarray(value_N))]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(value_N), buffers)


def pack(part: int, table: pa.Table) -> pa.Table:
    """A whole part as a single row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    offsets = pa.py_buffer(np.array([0, sink.tell()], dtype=np.int64))
    packed = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, sink.getvalue()])
    return pa.table({PART: pa.array([part], pa.int64()), PACKED: packed})


def unpack(row: pa.Table) -> tuple[int, pa.Table]:
    """The part's number and table, from a table of one row made by `pack`; nothing is copied."""
    packed = row[PACKED].chunk(0)[0].as_buffer()
    return row[PART][0].as_py(), pa.ipc.open_stream(packed).read_all().combine_chunks()
