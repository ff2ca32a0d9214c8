"""When two spellings of a name mean the same: what a label may look like beside the name of its class.

Two spellings are one name if they differ only in

- the normal form of Unicode ("café" in one character for é or in two),
- case, spaces, underscores and brackets,
- hyphens, slashes, dots, commas, colons and apostrophes that do not stand between two digits or at an end
  ("F-16A/B", "F-16A-B").

Everything else is a difference in meaning: "C" and "C++", "A" and "A-", "1.5 l" and "15 l", "Yahoo" and "Yahoo!".
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable

_DROPPED = re.compile("[()\\[\\]{}“”„«»]")
_BETWEEN = "-‐‑‒–—/.,:;'’"
_MARK = re.compile(rf"[\s_{re.escape(_BETWEEN)}]+")
_WHOLE_NUMBER = re.compile(r"(\d{1,18})(?:\.0*)?")


def normal(text: str) -> str:
    """The text in Unicode's composed form, without space around it: the exact spelling of a name."""
    return unicodedata.normalize("NFC", text).strip()


def prompt_name(label: str) -> str:
    """The name that stands in prompts for a label: underscores are spaces."""
    return " ".join(normal(label).replace("_", " ").split())


def same_name(text: str) -> str:
    """A key that is equal for names that differ in case and space alone; no two classes of a list may share it."""
    return " ".join(_folded(text).split())


def loose(text: str) -> str:
    """A key that is equal for two spellings of one name, see the module."""
    folded = _folded(text).strip()
    without = _DROPPED.sub(" ", folded) if len(_DROPPED.sub("", folded).strip(" _")) else folded
    return _MARK.sub(_mark, without.strip(" _"))


def position(label: str) -> int | None:
    """The whole number that a label is, also as "3.0" or "003"; None for any other text."""
    match = _WHOLE_NUMBER.fullmatch(label.strip())
    return int(match[1]) if match else None


def nearest(label: str, names: Iterable[str]) -> str | None:
    """The name that is spelt most like a label that is none of them; None where nothing is like it."""
    keys = {same_name(name): name for name in names}
    found = difflib.get_close_matches(same_name(label), keys, n=1, cutoff=0.6)
    return keys[found[0]] if found else None


def _folded(text: str) -> str:
    """Regardless of case, by Unicode's canonical caseless matching (The Unicode Standard, D145)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def _mark(found: re.Match[str]) -> str:
    """What remains of separators: nothing between letters, themselves where they may change the meaning."""
    marks = found[0].replace("_", " ")
    only_space = not marks.strip()
    text, start, end = found.string, found.start(), found.end()
    before, after = text[start - 1 : start], text[end : end + 1]
    if before.isdigit() and after.isdigit():
        return " ".join(marks.split()) or " "
    if only_space or (len(marks.strip()) == 1 and _is_word(before) and _is_word(after)):
        return ""
    return marks.strip()


def _is_word(character: str) -> bool:
    """Letters, digits and the marks that belong to letters."""
    return bool(character) and unicodedata.category(character)[0] in "LMN"
