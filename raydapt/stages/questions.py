"""Questions to a language model about rows, and the columns of its answers; which engine answers is another matter."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

ANSWER, SECONDS, ERROR, ASKED = "answer", "seconds", "error", "asked"
"""Columns of a result: the text, how long the engine took for it, why there is none, and what was asked."""
NO_ANSWER = "empty_answer"
"""Reason of rows to which a model said nothing, or nothing but its thoughts."""
SKIPPED = "skipped"
"""Reason of rows that nobody wants an answer to; they come out without answer and without error."""
FAILED = "__inference_error__"
"""Column of an engine's complaint about a row, as ray.data.llm calls it."""
_MOST_REASON = 160
_THOUGHT = "(?:think|thinking|thought|thoughts|reasoning)"
_THOUGHT_BEGINS = re.compile(rf"<{_THOUGHT}>|\[{_THOUGHT}\]", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"</{_THOUGHT}>|\[/{_THOUGHT}\]", re.IGNORECASE)
"""How families of reasoning models mark their thoughts: Qwen and DeepSeek in angles, Magistral in brackets."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked about one row."""

    text: str
    image: Image.Image | None = None
    seed: int = 0
    """Of sampling, where it is not greedy."""


class SkipRow(Exception):  # noqa: N818 - it is a verdict on a row, not a failure of the program
    """A row that cannot be asked; its text is the reason."""


PromptBuilder = Callable[[dict[str, Any]], Prompt]
"""Makes the question of a row, or raises `SkipRow`. It may take columns out of the row that are not to be kept."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked about the rows of a dataset, and the columns of the answers."""

    build: PromptBuilder
    """Makes the question of a row."""
    texts: Callable[[], Iterable[str]]
    """All texts that may be asked."""
    images: bool
    """Whether questions have an image."""
    schema: pa.Schema
    """Columns of the result, see `as_result`."""
    setting: str
    """The group of settings, for messages."""


def as_result(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Exactly the columns of a schema: what is missing is null, and an engine's complaint becomes the row's error.

    Thoughts are no part of an answer, and where nothing else was said there is none.
    """
    columns = {name: table[name] for name in table.column_names}
    nothing = [None] * table.num_rows
    own, failed = (columns[name].to_pylist() if name in columns else nothing for name in (ERROR, FAILED))
    columns[ERROR] = pa.array([_reason(*pair) for pair in zip(own, failed, strict=True)], pa.string())
    _leave_out_thoughts(columns)
    empty = pa.nulls(table.num_rows)
    return pa.table([columns.get(field.name, empty).cast(field.type) for field in schema], schema=schema)


def engine_reason(message: str) -> str:
    """One reason for all rows that failed alike: numbers and the rest of a long message are left out."""
    return "engine: " + re.sub(r"\d+", "N", (message.strip().splitlines() or [""])[0])[:_MOST_REASON]


def without_thoughts(text: str) -> str:
    """What a reasoning model says after its thoughts, empty if it never came to it; any other text as it stands."""
    if ends := list(_THOUGHT_ENDS.finditer(text)):
        return text[ends[-1].end() :].strip()
    return "" if _THOUGHT_BEGINS.match(text.lstrip()) else text


def _leave_out_thoughts(columns: dict[str, Any]) -> None:
    """Answers without thoughts, and a reason in the place of those that hold nothing else."""
    if ANSWER not in columns:
        return
    given: list[str | None] = columns[ANSWER].to_pylist()
    texts = [None if text is None else without_thoughts(text) for text in given]
    reasons = [
        NO_ANSWER if text is not None and not text.strip() and error is None else error
        for text, error in zip(texts, columns[ERROR].to_pylist(), strict=True)
    ]
    columns[ANSWER] = pa.array([text if text and text.strip() else None for text in texts], pa.string())
    columns[ERROR] = pa.array(reasons, pa.string())


def _reason(own: str | None, failed: str | None) -> str | None:
    if own == SKIPPED:
        return None
    return own if own or not failed else engine_reason(failed)
