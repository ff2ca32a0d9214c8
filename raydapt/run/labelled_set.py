"""Predictions as people go on with them: a folder by classes, a table, tasks for a labelling tool, a list of the rest.

Every row of the table is an image: ``id``, ``path``, ``class``, ``probability`` (that the class is right), ``taken``,
and ``by``: ``person`` where a person has named the image, else ``run``.
"""

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.compute as pc

from raydapt.data.parts import Source
from raydapt.data.reread import reread_images
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings
from raydapt.store.run_record import safe_name

COLUMNS = ("id", "path", "class", "probability", "taken", "by")
_SUFFIXES = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"II*\0", ".tif"), (b"MM\0*", ".tif"))
_BOM = "\ufeff"


def as_csv(table: pa.Table) -> bytes:
    """The table as CSV that spreadsheets read; what they would take for a formula gets an apostrophe before it."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in table.select(COLUMNS).to_pylist():
        shown = {**row, "probability": f"{row['probability']:.4f}", "taken": "yes" if row["taken"] else "no"}
        writer.writerow([_harmless(str(shown[name])) for name in COLUMNS])
    return (_BOM + sink.getvalue()).encode("utf-8", errors="replace")


def rest_of(table: pa.Table) -> pa.Table:
    """The images to look at: not taken, seen by nobody; first those most likely wrong, where a look changes most."""
    left = table.filter(pc.and_(pc.invert(table["taken"]), pc.equal(table["by"], "run")))
    return left.sort_by([("probability", "ascending"), ("path", "ascending")])


def as_label_studio(table: pa.Table, classes: Sequence[str], run: str) -> tuple[bytes, bytes]:
    """Tasks with predictions, and the labelling interface, as Label Studio imports them.

    Args:
        table: The images; ``path`` is what a task shows as image: an address, or what its storage serves.
        classes: The choices.
        run: Named as the model's version.
    """
    tasks = [
        {
            "data": {"image": row["path"], "raydapt_id": row["id"]},
            "predictions": [
                {
                    "model_version": run,
                    "score": row["probability"],
                    "result": [
                        {
                            "from_name": "class",
                            "to_name": "image",
                            "type": "choices",
                            "value": {"choices": [row["class"]]},
                        }
                    ],
                }
            ],
        }
        for row in table.to_pylist()
    ]
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    interface = (
        '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="class" toName="image" choice="single">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )
    return json.dumps(tasks, indent=1, ensure_ascii=False).encode("utf-8", errors="replace"), interface.encode()


def as_fiftyone(table: pa.Table, classes: Sequence[str], file_of: Mapping[str, Path]) -> tuple[bytes, bytes]:
    """``data.json`` and ``labels.json``, which FiftyOne imports as a ``FiftyOneImageClassificationDataset``.

    Args:
        table: The images.
        classes: All class names.
        file_of: The image file of every id.
    """
    labels = {
        row["id"]: {
            "label": row["class"],
            "confidence": row["probability"],
            "attributes": {"taken": row["taken"], "by": row["by"]},
        }
        for row in table.to_pylist()
    }
    files = {id_: str(file_of[id_]) for id_ in labels}
    told = {"classes": list(classes), "labels": labels}  # escaped: a path that is no UTF-8 comes back as it was
    return json.dumps(files, indent=1).encode(), json.dumps(told, indent=1).encode()


def write_folder(
    table: pa.Table, target: Path, source: Source, data: DataSettings, row_of: Mapping[str, int], *, copy: bool
) -> int:
    """Writes the taken images as ``target/CLASS/NAME``, which every tool reads as labelled; returns how many.

    Args:
        table: The images.
        target: A folder that is empty or not there yet.
        source: Of the images.
        data: Limits of reading.
        row_of: The row of every image in the source.
        copy: Copy image files instead of linking them. Images that are no files of this machine are always copied.

    Raises:
        UserError: If the folder holds something already, or cannot be written.
    """
    require_new(target)
    rows = [row for row in table.to_pylist() if row["taken"]]
    names = _folder_names([str(row["class"]) for row in rows])
    try:
        for name in set(names.values()):
            (target / name).mkdir(parents=True, exist_ok=True)
        if files := files_of(source):
            return _link(rows, target, files, row_of, names, copy=copy)
        return _write(rows, target, source, data, row_of, names)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"Option --folder={str(target)!r} cannot be written ({reason}): give another place.") from None


def require_new(folder: Path) -> None:
    """Refuses a folder that holds something.

    Raises:
        UserError: With the way out.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"Option --folder={str(folder)!r} holds something already: give a new folder.")


def files_of(source: Source) -> dict[int, Path]:
    """The image files of this machine that a source names, by row; empty where it has none."""
    if source.kind != "files" or "://" in source.parts[0].root:
        return {}
    return {
        part.first_row + at: (Path(part.root) / uri).absolute()
        for part in source.parts
        for at, uri in enumerate(part.uris)
    }


def _link(
    rows: Sequence[Mapping[str, Any]], target: Path, file_of: Mapping[int, Path], row_of: Mapping[str, int],
    names: Mapping[str, str], *, copy: bool,
) -> int:  # fmt: skip
    taken = set[str]()  # in small letters: some file systems tell no case
    for row in rows:
        file = file_of[row_of[row["id"]]]
        place = target / names[row["class"]] / file.name
        if str(place).lower() in taken:
            place = place.with_name(f"{row['id']}{file.suffix}")
        taken.add(str(place).lower())
        if copy:
            shutil.copyfile(file, place)
        else:
            place.symlink_to(file)
    return len(rows)


def _write(
    rows: Sequence[Mapping[str, Any]], target: Path, source: Source, data: DataSettings, row_of: Mapping[str, int],
    names: Mapping[str, str],
) -> int:  # fmt: skip
    ids, written = [row["id"] for row in rows], 0
    for at, image in reread_images(source, [row_of[id_] for id_ in ids], data, ids=ids):
        (target / names[rows[at]["class"]] / f"{ids[at]}{_suffix(image)}").write_bytes(image)
        written += 1
    return written


def _folder_names(classes: Sequence[str]) -> dict[str, str]:
    """A folder name for every class: readable, safe, and no two alike."""
    names: dict[str, str] = {}
    for class_ in sorted(set(classes)):
        name, number = safe_name(class_.replace(" ", "_"), limit=100), 2
        while name.lower() in {other.lower() for other in names.values()}:
            name, number = f"{safe_name(class_.replace(' ', '_'), limit=100)}-{number}", number + 1
        names[class_] = name
    return names


def _suffix(image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in _SUFFIXES if image.startswith(start)), ".img")


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
