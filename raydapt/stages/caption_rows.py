"""The rows that captions are asked about: of one image each, or of a group of four that lie anywhere in the source.

On Ray and in this process they are the same rows; what differs is where the images of groups wait.

Legend: N images, B rows of a block, 4 places of a group.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydapt.artefacts.captions import Piece
from raydapt.data.canvas import PER_GROUP, shrink
from raydapt.data.classes import fill_template
from raydapt.data.decode import BadImage, decode_rgb
from raydapt.data.sources import Part, group_parts, read_parts
from raydapt.settings.groups import DataSettings
from raydapt.stages.commit import PART, PART_ROWS, with_part
from raydapt.stages.questions import ASKED, ERROR, SKIPPED

if TYPE_CHECKING:
    import ray
    import ray.data

IMAGES, MEMBERS = "images", "members"
_ROWS_PER_BLOCK = 64  # encoded images of a block: small enough for any object store, two batches of the engine
Shelf = Callable[[int], pa.Array]
"""The encoded images of a part by its place among the parts, one Arrow array; null where there is none."""


@dataclass(frozen=True, kw_only=True)
class KnownRows:
    """What is known of a source's images before they are described, in the order of their features.

    Attributes:
        first_row_of: Where each part begins among the N images, with N at the end; parts in their order.
        class_N: Zero-shot class; -1 where there is no image, or nobody wants its caption.
        row_N: Row number in the source.
        id_N: Content ids.
        path_N: Where each image came from.
        error_N: Why an image could not be used.
        wanted_N: Whether the image is to be described.
        group_N4: Its group, see `raydapt.data.groups.draw_groups`.
        class_names: Names of the classes.
    """

    first_row_of: npt.NDArray[np.int64]
    class_N: npt.NDArray[np.int64]
    row_N: npt.NDArray[np.int64]
    id_N: Sequence[str]
    path_N: Sequence[str]
    error_N: Sequence[str | None]
    wanted_N: npt.NDArray[np.bool_]
    group_N4: npt.NDArray[np.int64]
    class_names: Sequence[str]

    def part(self, index: int) -> slice:
        """The rows of a part among all of them."""
        return slice(int(self.first_row_of[index]), int(self.first_row_of[index + 1]))

    def rows_of(self, piece: Piece) -> slice:
        """The rows of a piece among all of them."""
        part = self.part(piece.part)
        return slice(part.start + piece.start, part.stop if piece.stop is None else part.start + piece.stop)


def image_rows(
    pending: Sequence[Piece], parts: Sequence[Part], data: DataSettings, prompt: str, known: KnownRows | None
) -> Iterator[pa.Table]:
    """Rows to be asked about one image each, in blocks.

    Args:
        pending: The pieces whose rows are wanted.
        parts: All parts of the source; those that share a row group are read together.
        data: Limits of decoding.
        prompt: What is asked; a ``{}`` is the image's zero-shot class.
        known: What is known of the images; None asks the prompt of every one.
    """
    for group, pieces in _with_pieces(pending, parts):
        asked = [None if known is None else asked_of(prompt, known, part.index) for part in group]
        yield from _rows_of(group, pieces, asked, data, prompt)


def image_rows_on_ray(
    pending: Sequence[Piece],
    parts: Sequence[Part],
    data: DataSettings,
    prompt: str,
    known: KnownRows | None,
    nodes: dict[str, str] | None,
) -> ray.data.Dataset:
    """The same as a dataset, read on the nodes named."""
    import ray.data

    items = []
    for group, pieces in _with_pieces(pending, parts):
        asked = [None if known is None else asked_of(prompt, known, part.index) for part in group]
        items.append({"work": pickle.dumps((group, pieces, asked))})
    read = partial(read_images, data=data, prompt=prompt)
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=1, label_selector=nodes)


def _with_pieces(
    pending: Sequence[Piece], parts: Sequence[Part]
) -> Iterator[tuple[tuple[Part, ...], list[list[Piece]]]]:
    """The parts that are read together, with the pieces that are wanted of each; parts of none are left out."""
    of_part: dict[int, list[Piece]] = {}
    for piece in pending:
        of_part.setdefault(piece.part, []).append(piece)
    for group in group_parts([part for part in parts if part.index in of_part]):
        yield group, [of_part[part.index] for part in group]


def asked_of(prompt: str, known: KnownRows, part: int) -> list[str | None]:
    """What is asked about each image of a part; None about those that are passed over (not bad ones: they stay bad)."""
    rows = known.part(part)
    wanted = zip(known.wanted_N[rows].tolist(), known.error_N[rows], known.class_N[rows].tolist(), strict=True)
    return [_question(prompt, known, c) if want or error else None for want, error, c in wanted]


def _question(prompt: str, known: KnownRows, class_: int) -> str:
    return fill_template(prompt, known.class_names[class_]) if "{}" in prompt and class_ >= 0 else prompt


def read_images(batch: pa.Table, *, data: DataSettings, prompt: str) -> Iterator[pa.Table]:
    """Reads parts and yields the rows of their pieces in blocks, with the encoded image as a list of one."""
    parts, pieces, asked = pickle.loads(batch["work"][0].as_py())
    yield from _rows_of(parts, pieces, asked, data, prompt)


def _rows_of(
    parts: Sequence[Part],
    pieces_of_parts: Sequence[Sequence[Piece]],
    asked: Sequence[list[str | None] | None],
    data: DataSettings,
    prompt: str,
) -> Iterator[pa.Table]:
    for (_, table), pieces, texts in zip(read_parts(parts, data), pieces_of_parts, asked, strict=True):
        texts = texts or [prompt] * table.num_rows
        errors = [error or (SKIPPED if text is None else None)
                  for error, text in zip(table["error"].to_pylist(), texts, strict=True)]  # fmt: skip
        images = pa.array([[image] for image in table["image"].to_pylist()], pa.list_(pa.large_binary()))
        rows = table.select(["row", "id", "path"]).append_column(IMAGES, images)
        rows = rows.append_column(ASKED, pa.array(texts, pa.string())).append_column(
            ERROR, pa.array(errors, pa.string())
        )
        for piece in pieces:
            own = rows.slice(piece.start, None if piece.stop is None else piece.stop - piece.start)
            yield from _blocks(with_part(own, piece.number))


def group_rows(
    pending: Sequence[Piece], parts: Sequence[Part], data: DataSettings, prompt: str, known: KnownRows, cell_px: int
) -> Iterator[pa.Table]:
    """Rows to be asked about four images each, in blocks; the images wait in memory, no larger than their cells.

    Args:
        pending: The pieces whose rows are wanted.
        parts: All parts of the source, since a group's images lie anywhere.
        data: Limits of decoding.
        prompt: What is asked; a ``{}`` is the image's zero-shot class.
        known: What is known of the images.
        cell_px: Side of a cell of the canvas.
    """
    shelves = [shelf for group in group_parts(parts) for shelf in shelve(group, data, cell_px)]
    for item in _items(pending, known):
        yield grouped_rows(item, prompt, known, shelves.__getitem__)


def group_rows_on_ray(
    pending: Sequence[Piece],
    parts: Sequence[Part],
    data: DataSettings,
    prompt: str,
    known: KnownRows,
    cell_px: int,
    nodes: dict[str, str] | None,
) -> ray.data.Dataset:
    """The same as a dataset, read on the nodes named: every part once, and its images wait in Ray's object store."""
    import ray
    import ray.data

    remote = ray.remote(_shelve_on_ray)
    shelves: list[ray.ObjectRef[Any]] = []
    for group in group_parts(parts):
        returned = remote.options(num_returns=len(group), label_selector=nodes).remote(group, data, cell_px)
        shelves.extend(returned if isinstance(returned, list) else [returned])
    items = _items(pending, known)
    gather = partial(gather_groups, prompt=prompt, known=ray.put(known), shelves=shelves)
    dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
    return dataset.map_batches(gather, batch_size=1, batch_format="pyarrow", num_cpus=1, label_selector=nodes)


def _items(pending: Sequence[Piece], known: KnownRows) -> list[dict[str, int]]:
    """The blocks of the pending pieces: places among all rows, and the piece that they belong to."""
    items = []
    for piece in pending:
        rows = known.rows_of(piece)
        for start in range(rows.start, rows.stop, _ROWS_PER_BLOCK):
            stop = min(start + _ROWS_PER_BLOCK, rows.stop)
            items.append({PART: piece.number, "start": start, "stop": stop, PART_ROWS: rows.stop - rows.start})
    return items


def shelve(parts: Sequence[Part], data: DataSettings, cell_px: int) -> list[pa.Array]:
    """The images of each part as one Arrow array of encoded bytes; null where there is none."""
    arrays = []
    for _, table in read_parts(parts, data):
        images = [None if image is None else compact(image, cell_px, data) for image in table["image"].to_pylist()]
        arrays.append(pa.array(images, pa.large_binary()))
    return arrays


def _shelve_on_ray(parts: Sequence[Part], data: DataSettings, cell_px: int) -> Any:
    arrays = shelve(parts, data, cell_px)
    return arrays if len(arrays) > 1 else arrays[0]


def compact(image: bytes, cell_px: int, data: DataSettings) -> bytes | None:
    """An encoded image no larger than its cell's pixels are: as it is, or made to fit; None for a bad one."""
    if len(image) <= 3 * cell_px**2:
        return image
    try:
        decoded = decode_rgb(image, max_pixels=data.max_image_pixels, max_bytes=data.max_image_bytes)
    except BadImage:
        return None
    sink = io.BytesIO()
    shrink(decoded, cell_px).save(sink, format="PNG")
    return sink.getvalue()


def gather_groups(
    batch: pa.Table, *, prompt: str, known: ray.ObjectRef[KnownRows], shelves: Sequence[ray.ObjectRef[pa.Array]]
) -> pa.Table:
    """One block of rows with the encoded images of their groups."""
    import ray

    return grouped_rows(batch.to_pylist()[0], prompt, ray.get(known), lambda part: ray.get(shelves[part]))


def grouped_rows(item: Mapping[str, int], prompt: str, known: KnownRows, shelf: Shelf) -> pa.Table:
    """One block of rows with the encoded images of their groups, from where the images wait."""
    rows = slice(item["start"], item["stop"])
    group_B4 = known.group_N4[rows]
    image_of = _fetch(known, np.unique(group_B4[group_B4 >= 0]), shelf)
    images, members, errors = [], [], []
    for at, group in zip(range(rows.start, rows.stop), group_B4.tolist(), strict=True):
        drawn = [i for i in group if i >= 0]
        encoded = [image_of[i] for i in drawn]
        missing = len(drawn) < PER_GROUP or any(image is None for image in encoded)
        passed_over = known.error_N[at] or (None if known.wanted_N[at] else SKIPPED)
        errors.append(passed_over or ("member_missing" if missing else None))
        images.append(None if errors[-1] else encoded)
        members.append([known.id_N[i] for i in drawn] or None)
    asked = [_question(prompt, known, c) for c in known.class_N[rows].tolist()]
    table = pa.table(
        {
            "row": pa.array(known.row_N[rows]),
            "id": pa.array(known.id_N[rows], pa.string()),
            "path": pa.array(known.path_N[rows], pa.string()),
            IMAGES: pa.array(images, pa.list_(pa.large_binary())),
            MEMBERS: pa.array(members, pa.list_(pa.string())),
            ASKED: pa.array(asked, pa.string()),
            ERROR: pa.array(errors, pa.string()),
        }
    )
    return with_part(table, item[PART], item[PART_ROWS])


def _fetch(known: KnownRows, wanted_M: npt.NDArray[np.int64], shelf_of: Shelf) -> Mapping[int, bytes | None]:
    """The encoded images at these places, shelf by shelf, so that no more than one part is held at a time."""
    shelf_M = np.searchsorted(known.first_row_of, wanted_M, side="right") - 1
    images: dict[int, bytes | None] = {}
    for shelf in np.unique(shelf_M).tolist():
        array = shelf_of(shelf)
        for place in wanted_M[shelf_M == shelf].tolist():
            images[place] = array[place - int(known.first_row_of[shelf])].as_py()
    return images


def _blocks(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, _ROWS_PER_BLOCK):
        yield table.slice(start, _ROWS_PER_BLOCK)
