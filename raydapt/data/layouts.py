"""What the folders of an image set mean: splits, classes, or nothing.

A layout is written as a path: ``class``, ``split``, ``split/class``, with ``*`` for a folder that means nothing, such
as a wrapper around all others; ``flat`` where no folder means anything.
"""

import re
from collections.abc import Collection, Iterable, Sequence

from raydapt.data.files import SPLIT_NAMES, TRAIN_NAMES, UNLABELLED_NAMES
from raydapt.data.parts import printable
from raydapt.errors import UserError

FLAT, CLASS, SPLIT, SPLIT_CLASS = "flat", "class", "split", "split/class"
_SPLITS = frozenset(SPLIT_NAMES)
_WORD = re.compile(r"(?<![a-z])(" + "|".join(sorted(SPLIT_NAMES, key=len, reverse=True)) + r")(?![a-z])")


def layout_of(names: Iterable[str]) -> str:
    """What the folders of image files mean, see the module.

    Folders around all others are passed by. Then, if all folders of a level are called as splits are (train, val, test,
    …, also ``seg_train`` beside ``seg_test``), or a training and a test split are among them, that level is splits;
    the folders within are classes if all images of labelled splits are in such folders. Otherwise the first folder is
    the class, unless some images are in none.
    """
    folders = {tuple(name.split("/")[:-1]) for name in names}
    depth, level = 0, {path[0] if path else "" for path in folders}
    while len(level) == 1 and "" not in level and not _are_splits(level):
        depth += 1
        level = {path[depth] if len(path) > depth else "" for path in folders}
    if len(level) == 1 and "" in level:  # one folder holds everything: it is the class, as far as it is one
        return FLAT if min(len(path) for path in folders) == 0 else CLASS
    if "" in level:
        return FLAT if min(len(path) for path in folders) == 0 else CLASS
    prefix = "*/" * depth
    if not _are_splits(level):
        return prefix + CLASS
    return prefix + SPLIT + _below_splits(folders, depth)


def _below_splits(folders: Collection[tuple[str, ...]], depth: int) -> str:
    """What follows ``split`` in a layout."""
    labelled = [path for path in folders if split_name(path[depth]) not in UNLABELLED_NAMES]
    if not labelled or min(len(path) for path in labelled) <= depth + 1:
        return ""
    inner: dict[str, set[str]] = {}
    for path in labelled:
        inner.setdefault(path[depth], set()).add(path[depth + 1])
    wrapped = all(len(below) == 1 for below in inner.values()) and min(len(path) for path in labelled) > depth + 2
    if wrapped and len({path[depth + 2] for path in labelled}) > 1:  # seg_train/seg_train/cat
        return "/*/class"
    return "/class"


def label_and_split(name: str, layout: str) -> tuple[str | None, str | None]:
    """The label and the split (in lower case) that the folders of an image give, see `layout_of`."""
    found: dict[str, str] = {}
    for meaning, folder in zip(layout.split("/"), printable(name).split("/")[:-1], strict=False):
        found[meaning] = folder
    split = found.get("split")
    return found.get("class"), None if split is None else split_name(split)


def split_name(folder: str) -> str:
    """The split that a folder is: ``train`` for "Train" and "seg_train", its own name in lower case for any other."""
    lower = folder.lower()
    match = None if lower in _SPLITS else _WORD.search(lower)
    return match[1] if match else lower


def check_layout(names: Iterable[str], layout: str) -> None:
    """Refuses folders of which a split may have been taken for a class.

    Raises:
        UserError: If classes stand in a folder that is called as a split is, beside folders without classes.
    """
    if layout != CLASS:
        return
    inner: dict[str, set[str]] = {}
    for name in names:
        top, *below = name.split("/")[:-1]
        inner.setdefault(top, set()).update(below[:1])
    for top, folders in inner.items():
        others = [other for other in inner if other != top]
        if top.lower() in _SPLITS and len(folders) > 1 and others and not any(inner[other] for other in others):
            raise UserError(
                f"data.source: the folder {top!r} holds folders and its neighbour {others[0]!r} does not, so it is not "
                f"clear whether {top!r} is a split or a class: give the folder {top!r} alone, or put all images into "
                "SPLIT/CLASS/ or CLASS/."
            )


def describe_layout(names: Sequence[str], layout: str) -> str:
    """A sentence for a layout that a person may not expect; empty for the plain ones."""
    if layout == FLAT and (strays := [name for name in names if "/" not in name]) and len(strays) < len(names):
        return (
            f"The folders are not taken for classes, as {strays[0]!r} and {len(strays) - 1:,} more images lie beside "
            "them: move those away if the folders are classes."
        )
    return f"Folders are read as {layout.upper()}/, where * means nothing." if "*" in layout else ""


def _are_splits(level: Collection[str]) -> bool:
    lower = {folder.lower() for folder in level}
    if lower <= _SPLITS:
        return True
    trains, others = lower & TRAIN_NAMES, (lower & _SPLITS) - TRAIN_NAMES - UNLABELLED_NAMES
    if trains and others:  # what lies beside a training and a test split is another one
        return True
    around = {_WORD.sub("", folder, count=1) for folder in lower}
    return len(lower) > 1 and len(around) == 1 and all(_WORD.search(folder) for folder in lower)
