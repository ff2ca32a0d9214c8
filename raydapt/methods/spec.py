"""What a method tells about itself: one object per method, ``SPEC`` in its folder's ``spec.py``.

Whoever carries out a run, writes a report or exports a model asks here and never for the method's name. All parts but
`MethodSpec.build` have a default, so that a method says only what is special about it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from raydapt.artefacts.features import FeatureTable
from raydapt.artefacts.inputs import InputKind
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.artefacts.synthetic_images import SyntheticImages
from raydapt.data.classes import ClassSpace
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.errors import UserError
from raydapt.methods.class_prior import ClassPrior, class_prior
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.deployed import deployed_clip
from raydapt.methods.guard import Evidence, Verdict
from raydapt.methods.rates import Rate
from raydapt.methods.table import TABLE, setting_groups
from raydapt.models.clip import Clip
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree
from raydapt.store.artefact import Artefact
from raydapt.store.run_record import Run

PARADIGM_NAMES = {
    "ul": "without any label",
    "ssl": "with a few labels per class",
    "trzsl": "with labels of seen classes",
}


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a method is built from, on the device of `clip`.

    Attributes:
        config: The settings, resolved.
        clip: The frozen model.
        classes: Names and templates; the first template is the zero-shot prompt.
        images: What may be learned from; None for a method that is only to predict.
        synthetic: Synthetic images for a method that is only to predict and looks at them.
    """

    config: Config
    clip: Clip
    classes: ClassSpace
    images: TrainingImages | None = None
    synthetic: SyntheticImages | None = None

    @property
    def prior(self) -> ClassPrior:
        """How often classes occur, as far as anybody said."""
        return class_prior(self.config.data.class_prior, self.classes.names)

    def zero_shot_embeddings(self) -> Tensor:
        """Class embeddings [C, D] of the plain prompt."""
        return self.clip.class_embeddings(self.classes.names, self.classes.templates[:1])


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A training that is over, for what a method has to tell of it. Labels are here to measure with, never to learn.

    Attributes:
        config: The settings, resolved.
        classes: Names and templates.
        source: The images.
        record: The run's folder.
        artefacts: What was made, by name.
        stored_spec: How images are stored where the method reads or cuts them.
        clip: The frozen model, on `device`.
        method: With what it learned, in evaluation mode, on `device`.
        state: The method's tensors at the end of training.
        table: The features of all A images, without labels.
        class_A: int64 true classes, -1 where unknown.
        row_N: int64 rows of the training images.
        row_T: int64 rows of the test images.
        device: Of this process.
    """

    config: Config
    classes: ClassSpace
    source: Source
    record: Run
    artefacts: Mapping[str, Artefact]
    stored_spec: ImageSpec
    clip: Clip
    method: Method
    state: Mapping[str, Tensor] = field(default_factory=dict)
    table: FeatureTable
    class_A: Tensor
    row_N: Tensor
    row_T: Tensor
    device: torch.device


class MethodSpec(ABC):
    """One method, as the rest of the package sees it."""

    name: str
    """As in the setting ``method``; also the name of its folder and of its group of settings."""
    fits_at_once: bool = False
    """True where building it with images is all there is to learn: no rounds, no optimiser steps."""
    deployed_words: str = "CLIP's image tower and class embeddings"
    """What `deployable` gives, in words."""
    teachers_setting: str = ""
    """The setting that names finished runs (see `teacher_runs`), for messages."""
    reads_answers: bool = False
    """True where the answers of those runs are read in learning, and not by another artefact alone."""
    guarded: bool = True
    """False for zero-shot alone, which every answer is compared with."""
    paradigms: Sequence[str] = ("ul", "ssl", "trzsl")
    """What it can learn with: no labels, a few, or those of seen classes."""
    published_rate: float = 0.02
    """What ``train.learning_rate=published`` stands for."""

    @property
    def learns(self) -> bool:
        """False for classifiers that are only made and asked."""
        return TABLE[self.name].learns

    @abstractmethod
    def build(self, context: BuildContext) -> Method:
        """The untrained method.

        Raises:
            UserError: When settings, model and class names do not fit each other.
        """

    def groups(self, config: Config) -> tuple[str, ...]:
        """The groups of settings that are its own (see `raydapt.methods.table.setting_groups`)."""
        return setting_groups(self.name, as_tree(config))

    def resolve(self, config: Config, facts: PlanFacts) -> Config:
        """The same settings without any ``auto`` of its own groups.

        Raises:
            UserError: For a user's mistake.
        """
        return config

    def auto_rate(self, config: Config, facts: PlanFacts) -> Rate:
        """What ``train.learning_rate=auto`` stands for; the published one where no rule was measured.

        Args:
            config: Resolved in all else.
            facts: Of the run.
        """
        return Rate(self.published_rate, unit_gradient=False)

    def decide_rate(self, config: Config, facts: PlanFacts) -> Config:
        """The same settings with a number for the learning rate."""
        train, unit = config.train, config.train.unit_gradient
        if train.learning_rate == "auto":
            rate = self.auto_rate(config, facts)
        elif train.learning_rate == "published":
            rate = Rate(self.published_rate, unit_gradient=False)
        else:
            rate = Rate(train.learning_rate, unit_gradient=False)
        unit = rate.unit_gradient if unit == "auto" else unit
        return replace(config, train=replace(train, learning_rate=rate.learning_rate, unit_gradient=unit))

    def answers_with_frozen(self, config: Config) -> bool:
        """What ``predict.with_frozen=auto`` is where the guard is on."""
        return False

    def decide_frozen(self, config: Config) -> Config:
        """The same settings with a yes or no for ``predict.with_frozen``."""
        if config.predict.with_frozen != "auto":
            return config
        with_frozen = config.guard and self.answers_with_frozen(config)
        return replace(config, predict=replace(config.predict, with_frozen=with_frozen))

    def reads_second(self, config: Config) -> bool:
        """Whether it learns from the features of a second encoder (``model.second``), where there are some."""
        return False

    def check_paradigm(self, config: Config) -> None:
        """Refuses labels that the method could not use.

        Raises:
            UserError: For a paradigm that is not among its own.
        """
        if config.data.paradigm not in self.paradigms:
            known = " or ".join(f"{name} ({PARADIGM_NAMES[name]})" for name in self.paradigms)
            raise UserError(
                f"Setting data.paradigm={config.data.paradigm!r} is nothing that {self.name} learns with: set it to "
                f"{known}, or take another method."
            )

    def input_kind(self, config: Config) -> InputKind:
        """What it takes for an image."""
        return "features"

    def unfit_for_features(self, config: Config, *, text_tower: bool) -> str | None:
        """Why it cannot learn where there are features and no images, in a sentence with the way out; None if it can.

        Args:
            config: Resolved.
            text_tower: False where class embeddings stand for the whole model.
        """
        return None

    def stored_spec(self, config: Config, image_spec: ImageSpec) -> ImageSpec:
        """How images are stored where it reads pixels or cuts crops."""
        return image_spec

    def artefacts(self, config: Config, facts: PlanFacts, *, to_learn: bool = True) -> list[ArtefactSpec]:
        """What it reads beside the features and the pixels of the images.

        Args:
            config: Resolved.
            facts: Of the run.
            to_learn: False for what it needs only to predict.
        """
        return []

    def inputs(self, config: Config, facts: PlanFacts) -> list[str]:
        """Identities that its results depend on beside the features: weights of other models, captions, other runs."""
        return []

    def finished(self, config: Config) -> Config:
        """The settings of a finished run without what nothing but its learning needed."""
        return config

    def members(self, config: Config) -> Sequence[str]:
        """Runs that are carried out first and then learned from, each as on the command line: a method and settings."""
        return ()

    def with_members(self, config: Config, folders: Sequence[str]) -> Config:
        """The same settings with the folders of the runs of `members` among its `teacher_runs`."""
        raise NotImplementedError

    def teacher_runs(self, config: Config) -> Sequence[str]:
        """Folders of finished runs whose answers it learns from."""
        return ()

    def teacher_answers(
        self, config: Config, verdicts: Sequence[Verdict], evidence: Sequence[Evidence | None]
    ) -> Sequence[Verdict]:
        """Which of its answers each of those runs gives; as adapted, unless a method knows better.

        Args:
            config: Of the run that learns from them.
            verdicts: What they answer with themselves.
            evidence: Of their guards; None where there was none.
        """
        return ["adapted"] * len(verdicts)

    def matters(self, config: Config) -> dict[str, Any]:
        """Its own settings that change a result, by group."""
        tree = as_tree(config)
        return {name: tree[name] for name in self.groups(config)}

    def synthetic_images(self, config: Config) -> int:
        """Synthetic images of each class that it learns from."""
        return 0

    def rounds(self, config: Config) -> int:
        """Rounds of learning, at most."""
        return 1 if self.learns else 0

    def check_accumulation(self, config: Config) -> None:
        """Refuses gradients that are summed over parts of a batch where that is another objective.

        Raises:
            UserError: See above.
        """
        parts, reason = config.train.gradient_accumulation, self.whole_batch(config)
        if parts > 1 and reason:
            raise UserError(
                f"Setting train.gradient_accumulation={parts} would change what {self.name} learns, since {reason}: "
                "set it to 1, and lower train.batch_size or raise train.workers if memory is short."
            )

    def learned(self, config: Config) -> str:
        """What is learned, in words that dry run, report and comparison share."""
        return "nothing"

    def whole_batch(self, config: Config) -> str | None:
        """What of its loss is no mean over images, so that a batch cannot be cut into parts; None if all of it is one.

        Args:
            config: Resolved.
        """
        return None

    def prompt(self, config: Config) -> str | None:
        """The kind of prompt that is learned (``text``, ``visual``, ``both``); None where none is."""
        return None

    def starts_from(self, config: Config) -> str:
        """Which plain classifier it begins as, ``text`` or ``descriptions``: agreeing with it proves nothing."""
        return "text"

    def descriptions(self, config: Config) -> Mapping[str, Sequence[str]] | None:
        """Descriptions of the classes among its settings."""
        return None

    def outcome(self, finished: FinishedRun) -> dict[str, Any]:
        """Its own groups of metrics.json; may write tables of its own into the run folder."""
        return {}

    def deployable(self, method: Method, clip: Clip) -> nn.Module:
        """The module from uint8 pixels to logits that answers as the method does.

        Raises:
            UserError: For a method that is more than an image encoder with class embeddings.
        """
        return deployed_clip(method, clip)

    def deployed_px(self, config: Config, image_spec: ImageSpec) -> int:
        """Side of the images that the deployed module takes."""
        return image_spec.size_px
