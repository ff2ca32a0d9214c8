"""Class names that say nothing to a model, such as the numbers of WebDataset's ``.cls`` files."""

import re
from collections.abc import Sequence

from raydapt.data.named_sets import set_of_names
from raydapt.data.spelling import position

_WORDNET_ID = re.compile(r"n\d{8}")
"""As the folders of ImageNet are called."""


def say_nameless(names: Sequence[str]) -> list[str]:
    """A sentence where all classes are called by numbers, and are no named set such as digits; else nothing."""
    if not all(position(name) is not None or _WORDNET_ID.fullmatch(name) for name in names):
        return []
    if set_of_names(names) is not None:
        return []
    return [
        f"The classes are called by numbers ({names[0]!r}, {names[1]!r}, …), which say nothing to the model: "
        "set data.class_names to what they are, as a list in the order of the numbers or a text file with one name a "
        "line; beside tars a classnames.txt does as well."
    ]
