"""Committing a part: whoever made it writes its shard, an actor, a task or this process, and the driver hears of it.

What crosses the cluster is a `Committed`, some hundred bytes whatever the rows hold. A part that is committed twice, by
a retry, by two workers or after the loss of a node, is the same shard: its bytes depend on the part alone, each writer
has a temporary name of its own, and a rename or a put replaces the shard as a whole.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydapt.store.artefact import Artefact, Shard

if TYPE_CHECKING:
    from raydapt.models.peak import Work  # torch, which not every worker needs

PART, PART_ROWS, MODEL_S = "part", "part_rows", "model_s"
MODEL_FLOP, PEAK_FLOP = "model_flop", "peak_flop"
TOLD = (PART, PART_ROWS, MODEL_S, MODEL_FLOP, PEAK_FLOP)
"""Columns of a part that are told of it, and not stored."""
"""Columns that a result row carries for the commit: its part, how many rows that part has, and the seconds that its
share of the model's work took (optional). They are not stored."""
STOPPED = "stopped: "
"""Begins the error of a row that was not made because its maker gave up; what follows is the sentence for the user."""
COMMITTED = "committed"
"""Column of what an actor tells of the parts that it has committed."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What is told of a part once it is in the store.

    Attributes:
        part: Its number.
        shard: Its file; None for a part that its maker gave up, which is not in the store.
        example: Path of a row in error, if there is one.
        model_s: Seconds of the model's work.
        model_flop: Floating-point operations in them.
        peak_flop: What the device could have done in them; 0 where nobody knows.
        stopped: Why the maker gave up, a sentence for the user.
    """

    part: int
    shard: Shard | None = None
    example: str = ""
    model_s: float = 0.0
    model_flop: float = 0.0
    peak_flop: float = 0.0
    stopped: str = ""


def with_part(table: pa.Table, part: int, part_rows: int | None = None) -> pa.Table:
    """Adds the columns `PART` and `PART_ROWS`; the rows are the whole part where nothing else is said."""
    values = (part, table.num_rows if part_rows is None else part_rows)
    for name, value in zip((PART, PART_ROWS), values, strict=True):
        table = table.append_column(name, pa.array(np.full(table.num_rows, value)))
    return table


def with_work(table: pa.Table, seconds: float, work: Work) -> pa.Table:
    """Adds what a model worked for the rows of a part, for `commit_part` to tell: the same share of it in each row."""
    for name, value in ((MODEL_S, seconds), (MODEL_FLOP, work.flop), (PEAK_FLOP, work.peak_flop_per_s * seconds)):
        table = table.append_column(name, pa.array(np.full(table.num_rows, value / max(1, table.num_rows))))
    return table


def _sum(table: pa.Table, name: str) -> float:
    return float(pc.sum(table[name]).as_py() or 0.0) if name in table.column_names else 0.0


def commit_part(artefact: Artefact, part: int, table: pa.Table) -> Committed:
    """Writes a whole part, unless its maker gave up.

    Args:
        artefact: What it is a part of.
        part: Its number.
        table: Its rows in any order, with the columns ``row``, ``path`` and ``error``.

    Raises:
        UserError: If the storage refuses; nothing of the part remains then.
    """
    bad = table.filter(pc.is_valid(table["error"]))
    if reason := _reason_of_stop(bad):
        return Committed(part=part, stopped=reason)
    stored = [name for name in table.column_names if name not in TOLD]
    shard = artefact.commit_part(
        part, table.select(stored).sort_by("row").combine_chunks(), Counter(bad["error"].to_pylist())
    )
    return Committed(
        part=part,
        shard=shard,
        example=str(bad["path"][0].as_py()) if bad.num_rows else "",
        model_s=_sum(table, MODEL_S),
        model_flop=_sum(table, MODEL_FLOP),
        peak_flop=_sum(table, PEAK_FLOP),
    )


def committed_row(artefact: Artefact, table: pa.Table) -> pa.Table:
    """Commits a whole part in an actor or task; one row that tells the driver, none for a part without rows.

    Rows are handed on as they are where no other process sees what this one stores (``memory://``).
    """
    if not artefact.folder.shared:
        return table
    told = [pickle.dumps(commit_part(artefact, table[PART][0].as_py(), table))] if table.num_rows else []
    return pa.table({COMMITTED: pa.array(told, pa.binary())})


def committing(maker: type[Any], artefact: Artefact) -> type[Any]:
    """The class of actors that make one part of a batch as `maker` does, and commit it."""

    class Committing(maker):  # type: ignore[misc]
        def __call__(self, batch: Any) -> pa.Table:
            return committed_row(artefact, super().__call__(batch))

    Committing.__name__ = Committing.__qualname__ = maker.__name__  # what Ray calls the actors
    return Committing


def told_of(tables: Iterable[pa.Table]) -> Iterator[Committed]:
    """What `committed_row` told."""
    for table in tables:
        yield from map(pickle.loads, table[COMMITTED].to_pylist())


def _reason_of_stop(bad: pa.Table) -> str:
    """Why some rows of a part were not made; empty for a whole part."""
    stopped = bad.filter(pc.starts_with(bad["error"].cast(pa.string()), pattern=STOPPED))
    return str(stopped["error"][0].as_py()).removeprefix(STOPPED) if stopped.num_rows else ""
