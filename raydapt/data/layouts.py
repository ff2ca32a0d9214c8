"""What the folders of an image set mean: splits, classes, or nothing.

A layout is written as a path: ``class``, ``split``, ``split/class``, ``class/split``, with ``*`` for a folder that
means nothing, such as a wrapper around all others; ``flat`` where no folder means anything.
"""

import re
from collections.abc import Collection, Iterable, Sequence

from raydapt.data.files import SPLIT_NAMES, TRAIN_NAMES, UNLABELLED_NAMES
from raydapt.data.parts import printable
from raydapt.errors import UserError

FLAT, CLASS, SPLIT, SPLIT_CLASS = "flat", "class", "split", "split/class"
_SPLITS = frozenset(SPLIT_NAMES) | {"labeled", "labelled"}
_ANY_SPLIT = "(" + "|".join(sorted(_SPLITS, key=len, reverse=True)) + ")"
_WORD = re.compile(rf"(?<![a-z]){_ANY_SPLIT}(?![a-z])")
_WORD_AND_MORE = re.compile(_ANY_SPLIT + r"[ _-]*(?:\d+|set|data|dataset|images?|imgs?|photos?|pictures?|[ab])")
"""Such as ``test1`` and ``training_set``."""
_MOST_SHOWN = 3


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
        return prefix + CLASS + _below_classes(folders, depth)
    return prefix + SPLIT + _below_splits(folders, depth)


def _below_classes(folders: Collection[tuple[str, ...]], depth: int) -> str:
    """What follows ``class`` in a layout: splits, if every image of every class is in a folder called so."""
    if min(len(path) for path in folders) <= depth + 1:
        return ""
    inner = {path[depth + 1] for path in folders}
    return "/" + SPLIT if len(inner) > 1 and _are_splits(inner) else ""


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
    lower = _bare(folder)
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
        more = f" and {len(strays) - 1:,} more images lie" if len(strays) > 1 else " lies"
        return (
            f"The folders are not taken for classes, as {strays[0]!r}{more} beside them: move what lies there away if "
            "the folders are classes."
        )
    if layout == FLAT:
        return ""
    said = []
    if "*" in layout:
        said.append(f"Folders are read as {layout.upper()}/, where * means nothing.")
    elif layout not in (CLASS, SPLIT, SPLIT_CLASS):
        said.append(f"Folders are read as {layout.upper()}/.")
    return " ".join([*said, *_describe_splits(names, layout), *_describe_classes(names, layout)])


def _describe_splits(names: Sequence[str], layout: str) -> list[str]:
    """Which folders are taken for splits of another name."""
    if SPLIT not in layout.split("/"):
        return []
    place = layout.split("/").index(SPLIT)
    folders = sorted({name.split("/")[place] for name in names})
    other = [f"{folder!r} as {split_name(folder)!r}" for folder in folders if folder.lower() != split_name(folder)]
    return [f"Splits: {_some(other)}."] if other else []


def _describe_classes(names: Sequence[str], layout: str) -> list[str]:
    """Whether what is taken for classes may stand around them: the same folders are in each, as in ``sketch/dog``."""
    meanings = layout.split("/")
    if meanings[-1] != CLASS:
        return []
    inner: dict[str, set[str]] = {}
    for path in {tuple(name.split("/")[len(meanings) - 1 : -1]) for name in names}:
        if path:  # images of unlabelled splits are in no class
            inner.setdefault(path[0], set()).update(path[1:2] or [""])
    first = next(iter(inner.values()), set())
    if len(inner) < 2 or len(first) < 2 or any(folders != first for folders in inner.values()):
        return []
    outer, within = (_some([repr(name) for name in sorted(folders)]) for folders in (inner, first))
    return [
        f"The classes are {outer}, and each of them holds the folders {within}: give one of the outer folders to "
        "data.source if the inner ones are the classes."
    ]


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:_MOST_SHOWN]) + (f" and {len(words) - _MOST_SHOWN:,} more" * (len(words) > _MOST_SHOWN))


def _are_splits(level: Collection[str]) -> bool:
    lower = {_bare(folder) for folder in level}
    if lower <= _SPLITS:
        return True
    trains, others = lower & TRAIN_NAMES, (lower & _SPLITS) - TRAIN_NAMES - UNLABELLED_NAMES
    if trains and others:  # what lies beside a training and a test split is another one
        return True
    around = {_WORD.sub("", folder.lower(), count=1) for folder in level}
    return len(level) > 1 and len(around) == 1 and all(_WORD.search(folder.lower()) for folder in level)


def _bare(folder: str) -> str:
    """``test`` for "Test1" and "test_images"; any other name in lower case."""
    match = _WORD_AND_MORE.fullmatch(folder.lower())
    return match[1] if match else folder.lower()
