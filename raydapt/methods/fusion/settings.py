"""The settings of fusion."""

from dataclasses import dataclass, field
from typing import Literal

from raydapt.settings.types import STRICT, Auto, Positive, Share

FusedAnswers = Literal["auto", "adapted", "guarded"]
CHEAP = (
    "cpl model.prompt=residual",
    "fpl model.prompt=residual",
    "fair fair.layer_norms=false fair.crops=small_towers fair.anchor_text=auto",
    "latteclip latteclip.tune=residual latteclip.use_image_caption=false latteclip.use_batch_caption=false "
    "train.learning_rate=auto",
)
"""What ``auto`` stands for: methods that read cached features alone, with crops where the tower is small, and learn
class embeddings: seconds each."""


@dataclass(frozen=True, kw_only=True)
class FusionSettings:
    """Fusion: what several classifiers answer together, transduction over it, and a student that keeps both."""

    __pydantic_config__ = STRICT

    classifiers: Auto | list[str] = "auto"
    """What is fused, each as on the command line: a method and its settings, such as ``"fair fair.crops=8"``. Each is a
    run of its own on the same images, carried out first unless it is there; ``auto``: `cpl`, `fpl`, `fair` and
    `latteclip` on cached features, `fair` with crops where the tower reads less than 224 px. An empty list fuses the
    runs of `over` alone."""
    over: list[str] = field(default_factory=list)
    """Folders of finished runs of the same classes, without labels, that are fused as well."""
    answers: FusedAnswers = "auto"
    """What of a classifier is fused: what it learned, what its guard keeps, or ``auto``: what it learned, so far as its
    guard sees no sign of harm; where one does harm, all answer as their guards say."""
    transduction: Share = 0.5
    """Share of the transductive answer in what the student learns; the rest is the mean answer of the classifiers."""
    student_strength: Positive = 0.3
    """Kappa: how strongly the student's class embeddings are held at the texts'."""
