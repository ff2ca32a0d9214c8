"""What a language model is asked about a class, and what of its answers is kept as descriptions of it."""

import re
from collections.abc import Iterable, Sequence

from raydapt.data.descriptions import MAX_CHARACTERS

QUESTIONS = (
    "Describe what {} looks like",
    "How can you identify {}?",
    "What does {} look like?",
    "Describe an image from the internet of {}",
    "A caption of an image of {}:",
)
"""The five forms of LaFTer; the class stands in for ``{}``, with its article."""
LIST_PROMPT = (
    "List {} short and different descriptions of what {} looks like in a photo, one a line, each of at most 15 words, "
    "without the reason or an introduction."
)
_MARK = re.compile(r"^\s*(?:[-*•–—>#]+|\(?\d{1,3}[.):]|[a-zA-Z][.)])\s+")
_MARKUP = re.compile(r"<[^<>]{0,200}>|[*_`#]{1,3}")
_OPENING = re.compile(r"^(?:sure|certainly|of course|here (?:are|is)|okay|ok)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_LEAST_LETTERS, _MOST_WORDS = 8, 60


def with_article(name: str) -> str:
    """``an oak``, ``a birch``."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def questions_of(name: str, *, form: str, sentences: int) -> list[str]:
    """The questions about a class: the five ``questions``, or a single one for a ``list`` of so many sentences."""
    if form == "list":
        return [LIST_PROMPT.replace("{}", str(sentences), 1).replace("{}", with_article(name), 1)]
    return [question.replace("{}", with_article(name), 1) for question in QUESTIONS]


def clean_answer(answer: str, *, form: str, cut: bool) -> list[str]:
    """The sentences of one answer that can be descriptions.

    Left out are marks of lists, markup, introductions, what is too short to say anything or too long for a text tower,
    and characters that cannot be printed.

    Args:
        answer: As the model gave it.
        form: ``list``: every line is a description; ``questions``: the answer is prose.
        cut: Whether the answer ended for want of tokens; its last sentence is unfinished then.
    """
    pieces = answer.splitlines() if form == "list" else _SENTENCE_END.split(" ".join(answer.split()))
    kept = [_clean(piece) for piece in pieces]
    if cut and len(kept) > 1 and not kept[-1].endswith((".", "!", "?")):
        kept = kept[:-1]
    return [text for text in kept if _says_something(text)]


def distinct(texts: Iterable[str], *, most: int) -> list[str]:
    """The first texts that differ by more than case, spaces and punctuation."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(re.sub(r"[\W_]+", "", text.casefold()), text)
    return list(found.values())[:most]


def descriptions_of(answers: Sequence[str], *, form: str, cut: Sequence[bool], most: int) -> list[str]:
    """The descriptions of a class out of all answers about it, in their order."""
    pairs = zip(answers, cut, strict=True)
    return distinct((text for answer, ends in pairs for text in clean_answer(answer, form=form, cut=ends)), most=most)


def _clean(piece: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in piece)
    text = _MARK.sub("", _MARKUP.sub("", printable))
    return " ".join(text.split()).strip("\"'“”«» ")


def _says_something(text: str) -> bool:
    letters = sum(character.isalpha() for character in text)
    if letters < _LEAST_LETTERS or letters < len(text) / 2 or len(text) > MAX_CHARACTERS:
        return False
    return len(text.split()) <= _MOST_WORDS and not _OPENING.match(text) and not text.endswith(":")
