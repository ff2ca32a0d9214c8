"""The questions and answers of the miniature captioner's training, in varied wording.

Questions are those of LatteCLIP (one image, or the common visual attributes of several), about things of many kinds.
Answers name the class and say what the pixels show; all have fewer than 20 words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

SINGLE_QUESTION = "Describe the {} in the {} concisely, less than 20 words."
GROUP_QUESTION = "Describe the common visual attributes of the {} in all the {} concisely, less than 20 words."
THINGS: Mapping[str, str] = {
    "object": "objects",
    "scene": "scenes",
    "texture": "textures",
    "aircraft": "aircrafts",
    "pet": "pets",
    "car": "cars",
    "food": "foods",
    "flower": "flowers",
    "animal": "animals",
    "building": "buildings",
    "action of the person": "person's actions",
    "land use": "land use",
    "land cover": "land cover",
    "place": "places",
    "digit": "digits",
    "number": "numbers",
    "character": "characters",
    "thing": "things",
    "subject": "subjects",
    "figure": "figures",
    "image": "images",
}
"""What a question may ask for, one and several."""
FITTING: Mapping[str, tuple[str, ...]] = {
    "photos": ("object", "object", "animal", "thing", "subject", "scene"),
    "cartoons": ("object", "object", "animal", "figure", "subject"),
    "aerial": ("land use", "land use", "land cover", "place", "scene"),
    "satellite": ("land use", "land use", "land cover", "place", "scene"),
    "digits": ("digit", "digit", "number", "character"),
    "scenes": ("scene", "action of the person"),
}
MEDIA: Mapping[str, tuple[str, ...]] = {
    "photos": ("photo", "photo", "photo", "picture", "image"),
    "cartoons": ("photo", "photo", "cartoon", "drawing", "image"),
    "aerial": ("photo", "satellite image", "aerial photo", "image"),
    "satellite": ("satellite image", "satellite image", "photo", "image"),
    "digits": ("photo", "photo", "image", "picture"),
    "scenes": ("photo",),
}
FITTING_SHARE = 0.65
"""Share of questions that ask for what is there; the others ask for anything, and the answer tells what is there."""
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "photos": ("{a} {light} photo of {a} {name}{tint}.", "{a} photo of {a} {name}{tint}{edge}.",
               "{a} {colour} photo with {a} {name}{edge}.", "{a} {name} in {a} {detail} {light} photo{tint}.",
               "this is {a} {name}{tint}, seen in {a} {light} photo."),
    "cartoons": ("{a} {light} cartoon of {a} {name}{tint}.", "{a} drawing of {a} {name}{tint}{edge}.",
                 "{a} cartoon {name}{tint}, drawn with {contrast} outlines.",
                 "{a} {colour} cartoon showing {a} {name}{edge}."),
    "aerial": ("an aerial photo of {name}{tint}.", "{a} {detail} aerial view of {name}{tint}{edge}.",
               "{name} seen from the air{tint}.", "the land is {name}{tint}{edge}."),
    "satellite": ("{a} satellite photo of {name}{tint}.", "{a} {light} satellite image of {name}{tint}{edge}.",
                  "{name} seen from space{tint}.", "the land is {name}{tint}{edge}."),
    "digits": ("the digit {name}{stroke}, {polarity}.", "{a} handwritten digit {name}{stroke}, {polarity}.",
               "{a} {weight} {name}{lean}, {polarity}.", "the number {name}{stroke}, printed {polarity}."),
}  # fmt: skip
GROUP_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "photos": ("all the photos show {a} {name}{tint}.", "{light} photos of {a} {name}{tint}{edge}.",
               "in all of them there is {a} {name}{tint}."),
    "cartoons": ("all the pictures are cartoons of {a} {name}{tint}.", "{light} cartoons of {a} {name}{tint}{edge}."),
    "aerial": ("all the photos show {name} from the air{tint}.", "{detail} aerial views of {name}{tint}{edge}."),
    "satellite": ("all the images show {name} from space{tint}.", "{light} satellite images of {name}{tint}{edge}."),
    "digits": ("all the pictures show the digit {name}{stroke}, {polarity}.", "four times the digit {name}{stroke}."),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question, its answer, and where in the answer the class is named (empty for human captions)."""

    question: str
    answer: str
    name_span: tuple[int, int]


def question_about(style: str, random: Random, *, group: bool, hint: str | None = None) -> str:
    """One of the paper's questions; with a ``hint`` it names a class, as theirs for flowers and food do."""
    fits = random.random() < FITTING_SHARE
    thing = random.choice(FITTING[style] if fits else tuple(THINGS))
    medium = random.choice(MEDIA[style])
    if group:
        return GROUP_QUESTION.format(THINGS[thing], f"{medium}s")
    return SINGLE_QUESTION.format(f"{hint} {thing}" if hint else thing, medium)


def article(words: str) -> str:
    """``a`` or ``an``, by the letter."""
    return "an" if words[:1] in "aeiou" else "a"


def fill(wording: str, name: str, words: Mapping[str, str]) -> tuple[str, tuple[int, int]]:
    """Puts a class name and the words of its looks into a wording.

    Returns:
        The sentence in lower case, and the start and the end of the name in it.
    """
    colour, light = words.get("colour", ""), words.get("light", "")
    contrast, detail = words.get("contrast", ""), words.get("detail", "")
    weight, lean = words.get("weight", ""), words.get("lean", "")
    leaning = {"left": " leaning to the left", "right": " leaning to the right", "upright": " upright"}.get(lean, "")
    marks = {
        "tint": f", mostly {colour}" if colour else "",
        "edge": {"pale": " and pale", "strong": " with strong contrast"}.get(contrast, ""),
        "stroke": f" in {weight} strokes{leaning}" if weight else leaning,
        "lean": leaning,
        "colour": colour, "light": light, "contrast": contrast, "detail": detail, "weight": weight,
        "polarity": words.get("polarity", ""),
        "name": "\0", "a": "\1",
    }  # fmt: skip
    tokens = wording.format(**marks).replace(", .", ".").split()
    tokens = [token for token in tokens if token != ","]
    for at, token in enumerate(tokens[:-1]):
        if token == "\1":
            tokens[at] = article(tokens[at + 1].replace("\0", name))
    before, _, after = " ".join(tokens).partition("\0")
    return before + name + after, (len(before), len(before) + len(name))


def exchange_about(
    style: str, name: str, words: Mapping[str, str], random: Random, *, group: bool, hint: str | None = None
) -> Exchange:
    """A question about an image (or a group) of class ``name`` that looks like ``words``, and its answer."""
    question = question_about(style, random, group=group, hint=hint)
    answer, span = fill(random.choice((GROUP_WORDINGS if group else WORDINGS)[style]), name, words)
    return Exchange(question=question, answer=answer, name_span=span)


def human_exchange(captions: Sequence[str], random: Random, *, most_words: int = 19) -> Exchange:
    """A question about a photo that people have captioned: the answer is one of their captions, cut if long."""
    words = random.choice(captions).lower().rstrip(" .").split()[:most_words]
    answer = " ".join(words).replace(" ,", ",") + "."
    return Exchange(question=question_about("scenes", random, group=False), answer=answer, name_span=(0, 0))


def tokenizer_texts(names: Sequence[str]) -> list[str]:
    """What a tokenizer should know: every question, every wording and every name, in each kind of sentence."""
    looks = [
        {"colour": c, "light": li, "contrast": co, "detail": d, "weight": w, "lean": le, "polarity": p}
        for c, li, co, d, w, le, p in (
            ("grey", "dark", "pale", "smooth", "thin", "left", "white on black"),
            ("green", "bright", "strong", "detailed", "bold", "right", "black on white"),
            ("brown", "", "", "", "", "upright", "white on black"),
        )
    ]
    colours = ["red orange yellow green turquoise blue purple pink brown grey"] * 20
    questions = [SINGLE_QUESTION.format(one, medium) for one in THINGS for media in MEDIA.values() for medium in media]
    groups = [
        GROUP_QUESTION.format(many, f"{m}s") for many in THINGS.values() for media in MEDIA.values() for m in media
    ]
    sentences = [
        fill(wording, name, look)[0]
        for wordings in (*WORDINGS.values(), *GROUP_WORDINGS.values())
        for wording in wordings
        for look in looks
        for name in ("dog", "forest", "three")
    ]
    named = [f"{article(name)} {name}, the {name}." for name in names for _ in range(20)]
    return colours + 3 * (questions + groups + sentences) + named
