"""What a run needs and can be made, as pure data: known, with a name, before anything is computed."""

from dataclasses import dataclass
from typing import Any

from raydapt.data.classes import ClassSpace
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.store.fingerprint import Recipe


@dataclass(frozen=True, kw_only=True)
class ArtefactSpec:
    """Something that a run needs and that can be made.

    Attributes:
        name: Its name within the run.
        kind: What it is; `raydapt.stages.makers` knows who makes it.
        recipe: What it depends on; None where that is known only once `of` is made.
        of: Name of the artefact whose images it is about; None: the run's own source.
        depends_on: Names of artefacts of the run that are read to make it.
        parts: The parts that are wanted; None: all that there are.
        step: Whether it is read by other artefacts alone, so that it is not made where those are there.
        job: What its maker must know beside the recipe.
    """

    name: str
    kind: str
    recipe: Recipe | None
    of: str | None = None
    depends_on: tuple[str, ...] = ()
    parts: range | None = None
    step: bool = False
    job: Any = None


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """What is known of a run before anything is computed.

    Attributes:
        source: The images.
        classes: Names, labels and templates.
        image_spec: How the CLIP takes images.
        clip_identity: Of its weights.
        features: The recipe of the images' features.
        teachers: Digests of the finished runs that the settings name, in their order.
        text_tower: False where class embeddings stand for the whole model.
        width: Of the space that images and texts share.
        second: What is made for a second encoder's features, which come last; () for a method that reads none.
    """

    source: Source
    classes: ClassSpace
    image_spec: ImageSpec
    clip_identity: str
    features: Recipe
    teachers: tuple[str, ...] = ()
    text_tower: bool = True
    width: int = 512
    second: tuple[ArtefactSpec, ...] = ()
