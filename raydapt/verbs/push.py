"""``raydapt push``: runs, captions and synthetic images on the Hugging Face hub, each with a card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS
from raydapt.artefacts.synthetic_images import KIND as SYNTHETIC
from raydapt.errors import UserError
from raydapt.models.hub import is_unreachable
from raydapt.store.artefact import MANIFEST, Artefact, Store

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_DATA_SETS = (IMAGE_CAPTIONS, GROUP_CAPTIONS, SYNTHETIC)
_ROWS_PER_FILE = 5000
_NO_CARD_LINE = re.compile(r"[\r\n]+")


def push(what: str, repository: str, *, folder: str | None = None, public: bool = False) -> str:
    """Writes a folder for the hub, sends it, and says where it is.

    Args:
        what: Folder of a finished run (a model), or of captions or synthetic images in the store (a data set).
        repository: ``ORGANISATION/NAME``.
        folder: Where the files are written first; None: a folder beside `what`.
        public: Whether everybody may see the repository.

    Returns:
        A sentence: the address, or where the folder lies and how it is sent once the hub can be reached.

    Raises:
        UserError: For a folder that is none of these, a name that is none, or an account that may not write there.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository!r} is no name of the hub: write ORGANISATION/NAME.")
    artefact = _artefact_in(Path(what).expanduser())
    target = Path(folder).expanduser() if folder else Path(f"{what.rstrip('/')}-hub").expanduser()
    if artefact is not None:
        write_data_set(artefact, target, repository)
    else:
        from raydapt.verbs.export import export

        export(what, str(target))
    return _send(target, repository, kind="model" if artefact is None else "dataset", public=public)


def _artefact_in(place: Path) -> Artefact | None:
    """The finished captions or images in a folder of the store; None for a folder without a manifest."""
    if not (place / MANIFEST).is_file():
        return None
    kind, fingerprint = place.parent.name, place.name
    if kind not in _DATA_SETS:
        raise UserError(f"{str(place)!r} holds {kind}, which is nothing to publish: give captions or synthetic images.")
    return Store(str(place.parent.parent)).artefact(kind, fingerprint)


def write_data_set(artefact: Artefact, target: Path, repository: str) -> None:
    """Writes the rows that are whole as Parquet, and a card that says how they were made."""
    manifest, rows = artefact.manifest, 0
    (target / "data").mkdir(parents=True, exist_ok=True)
    for old in (target / "data").glob("*.parquet"):
        old.unlink()
    writer: pq.ParquetWriter | None = None
    try:
        for table in artefact.iter_tables():
            whole = _publishable(table)
            if writer is None:
                writer = pq.ParquetWriter(target / "data" / "train.parquet", whole.schema, compression="zstd")
            writer.write_table(whole, row_group_size=_ROWS_PER_FILE)
            rows += whole.num_rows
    finally:
        if writer is not None:
            writer.close()
    card = _data_card(artefact.kind, repository, manifest.settings, rows=rows, left_out=manifest.rows - rows)
    (target / "README.md").write_text(card, encoding="utf-8")


def _publishable(table: pa.Table) -> pa.Table:
    """Rows without an error; images as Hugging Face's struct, and nothing that only the store needs."""
    whole = table.filter(pa.compute.is_null(table["error"])).drop_columns(["error"])
    if "caption" in whole.column_names:
        whole = whole.filter(pa.compute.is_valid(whole["caption"]))
    if "image" in whole.column_names:
        images = pa.StructArray.from_arrays(
            [whole["image"].combine_chunks().cast(pa.binary()), whole["path"].combine_chunks()], ["bytes", "path"]
        )
        whole = whole.drop_columns(["image"]).append_column("image", images)
    return whole.drop_columns([name for name in ("row", "seconds") if name in whole.column_names])


def _data_card(kind: str, repository: str, settings: dict[str, Any], *, rows: int, left_out: int) -> str:
    """The card of a data set: what it holds and every setting that decided on it."""
    what = {
        IMAGE_CAPTIONS: "Captions of single images",
        GROUP_CAPTIONS: "Captions of groups of four images, each by its zero-shot class",
        SYNTHETIC: "Synthetic images of every class, labelled with what they were asked to show",
    }[kind]
    task = "text-to-image" if kind == SYNTHETIC else "image-to-text"
    facts = "\n".join(f"| `{name}` | {_cell(value)} |" for name, value in sorted(settings.items()))
    without = f" {left_out:,} more could not be made, or nobody wanted them." if left_out else ""
    images = (
        ""
        if kind == SYNTHETIC
        else ("\nThe images themselves are not here: `id` is the BLAKE2b of an image's bytes, `path` where it lay.\n")
    )
    return f"""---
task_categories: [{task}]
tags: [raydapt]
configs: [{{config_name: default, data_files: data/*.parquet}}]
---
# {repository.partition("/")[2]}

{what}, made by raydapt: {rows:,} rows.{without}
{images}
No label of an image was used. What a model says or draws may be wrong, and was not checked by a person.

| setting | value |
|---|---|
{facts}
"""


def _cell(value: Any) -> str:
    text = _NO_CARD_LINE.sub(" ", str(value)).replace("|", "\\|")
    return text if len(text) <= 300 else f"{text[:300]}…"


def _send(target: Path, repository: str, *, kind: str, public: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    later = f"`hf upload {repository} {target} --repo-type {kind}{'' if public else ' --private'}`"
    api = HfApi()
    try:
        made = api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository, repo_type=kind, folder_path=str(target), commit_message="Add files of raydapt"
        )
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and status >= 500:
            return f"The hub answered {status}; the files are in {str(target)!r}, and {later} sends them later."
        raise UserError(
            f"{repository!r} cannot be written on the hub ({_first(error)}): log in with `hf auth login` as somebody "
            f"who may, or give another name; the files are in {str(target)!r}."
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        if not is_unreachable(error):
            raise
        return f"The hub cannot be reached; the files are in {str(target)!r}, and {later} sends them later."
    return f"{made} ({'public' if public else 'private'}), from {str(target)!r}"


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
