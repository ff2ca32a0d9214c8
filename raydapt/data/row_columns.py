"""Which columns of a list of images hold the path, the label and the split."""

from collections.abc import Sequence
from dataclasses import dataclass

from raydapt.data.formats import IMAGE_SUFFIXES
from raydapt.errors import UserError

_PATHS = ("file_name", "filename", "file", "filepath", "file_path", "path", "image_path", "img_path", "image_name",
          "img_name", "image", "img", "image_id", "img_id", "imageid", "id_code", "id", "name", "url")  # fmt: skip
LABEL_NAMES = ("class_name", "classname", "label_name", "category_name", "label", "labels", "class", "category",
           "target", "class_id", "classid", "label_id", "category_id", "cls", "species", "breed", "diagnosis",
           "dx", "y")  # fmt: skip
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
_LOOKED_AT = 50


class NoPathColumnError(UserError):
    """A list that names no images."""


@dataclass(frozen=True, kw_only=True)
class RowColumns:
    """The places of the columns that are read."""

    path: int
    label: int | None = None
    split: int | None = None
    note: str = ""
    """What a person must know of the columns; empty for nothing."""


def find_row_columns(header: Sequence[str] | None, rows: Sequence[Sequence[str | None]], *, where: str) -> RowColumns:
    """Finds the columns by their names, case ignored; without a header by what is in them.

    The path is in a column called as paths are, else in the first one of image file names. Where no column is called
    as labels are and there is one column beside the path, that is the label.

    Raises:
        UserError: If no column can be the path.
    """
    if header is None:
        return _without_header(rows, where)
    keys = [column_key(name) for name in header]
    found = _first(keys, _PATHS)
    of_images = next((i for i in range(len(keys)) if _holds_names(rows, i)), None)
    path = of_images if found is None or (of_images is not None and not _holds_names(rows, found)) else found
    if path is None:
        raise NoPathColumnError(
            f"{where!r} has the columns {', '.join(header)}: call the one with the image files 'path' and the one with "
            "the classes 'label'."
        )
    split = _first(keys, SPLIT_COLUMNS, but=(path,))
    label = _first(keys, LABEL_NAMES, but=(path, split))
    rest = [i for i in range(len(keys)) if i not in (path, split)]
    if label is None and len(rest) == 1:
        label = rest[0]
    if label is not None or not rest:
        return RowColumns(path=path, label=label, split=split)
    others = ", ".join(header[i] for i in rest[:8])
    note = f"No column of {where} is called as labels are ({others}): call it 'label' if one of them holds the classes."
    return RowColumns(path=path, split=split, note=note)


def column_key(name: str) -> str:
    """How a column is looked up: "Class Name" and "class-name" are ``class_name``."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def is_image_name(cell: str) -> bool:
    """Whether a cell ends as image files do."""
    return cell.strip().lower().endswith(IMAGE_SUFFIXES)


def _without_header(rows: Sequence[Sequence[str | None]], where: str) -> RowColumns:
    path = next(i for i, cell in enumerate(rows[0]) if is_image_name(cell or ""))
    rest = [i for i in range(len(rows[0])) if i != path]
    if len(rest) > 1:
        raise UserError(
            f"{where!r} has {len(rest) + 1} columns and no names above them: write 'path' and 'label' above."
        )
    return RowColumns(path=path, label=rest[0] if rest else None)


def _holds_names(rows: Sequence[Sequence[str | None]], column: int) -> bool:
    cells = [row[column] or "" for row in rows[:_LOOKED_AT]]
    return bool(cells) and all(is_image_name(cell) for cell in cells if cell.strip()) and any(map(str.strip, cells))


def _first(keys: Sequence[str], names: Sequence[str], but: Sequence[int | None] = ()) -> int | None:
    return next((keys.index(name) for name in names if name in keys and keys.index(name) not in but), None)
