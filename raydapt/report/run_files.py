"""Reading a run folder: a local path or any fsspec URL. Everything but ``metrics.json`` may be absent."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raydapt.errors import UserError
from raydapt.store.folder import Folder


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run folder holds.

    Attributes:
        metrics: ``metrics.json``.
        config: ``config.yaml``, the resolved settings.
        environment: ``environment.json``.
        steps: The lines of ``metrics.jsonl``.
        predictions: ``predictions.parquet``: id, path, split, label, zero_shot, zero_shot_confidence,
            predicted, confidence; where labels are worded otherwise than class names also class (name of the true
            class or null).
        pseudo_labels: ``pseudo_labels.parquet``: round, id, classes, weights.
        gallery: ``gallery.parquet``: id, image (encoded bytes), kind, path.
        folder: Where it was read from; None for a record that was made in memory.
    """

    metrics: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    predictions: pa.Table | None = None
    pseudo_labels: pa.Table | None = None
    gallery: pa.Table | None = None
    folder: Folder | None = None

    def table(self, name: str) -> pa.Table | None:
        """Another Parquet file of the folder, such as a method's own ``crops.parquet``; None where there is none."""
        return None if self.folder is None else _table(self.folder, name)


def open_run(run_folder: str | Path | Folder) -> Folder:
    """The run folder behind a local path, an fsspec URL or a `Folder`, without touching it."""
    return run_folder if isinstance(run_folder, Folder) else Folder(str(run_folder), setting="run folder")


def read_summary(folder: Folder) -> RunRecord:
    """Reads the small files: metrics and configuration.

    Raises:
        UserError: When the folder holds no readable ``metrics.json``.
    """
    text = read_bytes(folder, "metrics.json")
    if text is None:
        name = folder.path
        raise UserError(
            f"Folder {name!r} is not a finished run, it has no metrics.json: give a folder such as runs/NAME."
        )
    return RunRecord(
        metrics=_mapping(folder, "metrics.json", text),
        config=_mapping(folder, "config.yaml", read_bytes(folder, "config.yaml") or b""),
        environment=_mapping(folder, "environment.json", read_bytes(folder, "environment.json") or b""),
        folder=folder,
    )


def read_run(folder: Folder) -> RunRecord:
    """Reads everything that the report shows; see `read_summary` for the errors."""
    return replace(
        read_summary(folder),
        steps=_json_lines(read_bytes(folder, "metrics.jsonl") or b""),
        predictions=_table(folder, "predictions.parquet"),
        pseudo_labels=_table(folder, "pseudo_labels.parquet"),
        gallery=_table(folder, "gallery.parquet"),
    )


def read_bytes(folder: Folder, name: str) -> bytes | None:
    """The content of one file of the folder; None when it is not there."""
    try:
        return folder.read(name)
    except FileNotFoundError:
        return None


def write_text(folder: Folder, name: str, text: str) -> None:
    """Writes UTF-8 text as a whole; what cannot be encoded (lone surrogates) becomes a question mark."""
    folder.write(name, text.encode("utf-8", errors="replace"))


def number(value: object) -> float | None:
    """A finite float, or None for anything else (null, NaN, text, missing)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def group(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A nested mapping of the tree; an empty one when it is null or missing."""
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"train.epochs": 50, …}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _mapping(folder: Folder, name: str, text: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(text) if name.endswith(".json") and text else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise UserError(
            f"File {folder.file(name)!r} is damaged: run the same command again to write it anew."
        ) from None
    return tree if isinstance(tree, dict) else {}


def _json_lines(text: bytes) -> list[dict[str, Any]]:
    """The whole lines; the last one is cut short when the run was killed while writing it."""
    lines: list[dict[str, Any]] = []
    for line in text.decode("utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            lines.append(entry)
    return lines


def _table(folder: Folder, name: str) -> pa.Table | None:
    data = read_bytes(folder, name)
    return None if data is None else pq.read_table(io.BytesIO(data))
