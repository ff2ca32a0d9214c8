"""Descriptions of classes by an instruct language model: what they depend on, and how they are read."""

from collections.abc import Sequence
from typing import Any

from raydapt.data.description_texts import descriptions_of
from raydapt.settings.language import DescribeSettings
from raydapt.store.artefact import Artefact
from raydapt.store.fingerprint import Recipe

KIND = "descriptions"
_ANSWER = "answer"


def descriptions_recipe(class_names: Sequence[str], settings: DescribeSettings, identity: str) -> Recipe:
    """What the answers depend on.

    Args:
        class_names: All classes.
        settings: The questions and how they are answered.
        identity: Identity of the model's weights.
    """
    used = ("form", "answers", "sentences", "max_tokens", "greedy", "seed", "max_model_len")
    asked: dict[str, Any] = {name: getattr(settings, name) for name in used}
    return Recipe(kind=KIND, settings=asked | {"class_names": list(class_names)}, inputs=(), weights=identity)


def load_descriptions(artefact: Artefact, settings: DescribeSettings) -> dict[str, list[str]]:
    """The cleaned descriptions by class name; a class of which no answer can be used has none."""
    answers: dict[str, list[str]] = {name: [] for name in artefact.manifest.settings["class_names"]}
    for table in artefact.iter_tables(["path", _ANSWER]):
        for name, answer in zip(table["path"].to_pylist(), table[_ANSWER].to_pylist(), strict=True):
            answers[name].append(answer or "")
    return {
        name: descriptions_of(texts, form=settings.form, cut=[True] * len(texts), most=settings.most)
        for name, texts in answers.items()
    }
