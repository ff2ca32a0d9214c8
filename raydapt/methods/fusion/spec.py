"""What ``fusion`` tells about itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from raydapt.artefacts.spec import PlanFacts
from raydapt.errors import UserError
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.fusion.fused_answers import fused_answers
from raydapt.methods.fusion.outcome import fusion_outcome
from raydapt.methods.fusion.settings import CHEAP, FusionSettings
from raydapt.methods.fusion.student import learn_student, taught_rows
from raydapt.methods.guard import Evidence, Verdict
from raydapt.methods.spec import BuildContext, FinishedRun, MethodSpec
from raydapt.methods.transduct.fit import TransductFit
from raydapt.methods.transduct.method import Transduct
from raydapt.methods.transduct.settings import TransductSettings
from raydapt.methods.transduct.spec import TransductSpec, fit_images
from raydapt.settings.config import Config


class FusionSpec(TransductSpec):
    """The mean answer of several runs, transduction over it, and a student that learns from both.

    The student is linear, so that it answers and is deployed as a fit of `transduct` is.
    """

    name = "fusion"
    teachers_setting = "fusion.over"

    def build(self, context: BuildContext) -> Method:
        """Fitted to the unlabelled images; without images a method that is only to predict."""
        text_CD = context.clip.class_embeddings(context.classes.names, context.classes.templates)
        fitted = None if context.images is None else _with_student(context, context.images, text_CD)
        return Transduct(context.clip, text_CD, 1.0, fitted)

    def resolve(self, config: Config, facts: PlanFacts) -> Config:
        """Refuses runs that only transduction would read."""
        if config.of(TransductSettings).over:
            raise UserError("Setting transduct.over belongs to method=transduct: name the runs in fusion.over.")
        return config

    def members(self, config: Config) -> Sequence[str]:
        """As the settings say; ``auto``: the cheap ones."""
        classifiers = config.of(FusionSettings).classifiers
        return CHEAP if classifiers == "auto" else classifiers

    def with_members(self, config: Config, folders: Sequence[str]) -> Config:
        """The same with the folders of those runs in place of the names."""
        settings = config.of(FusionSettings)
        over = list(dict.fromkeys([*folders, *settings.over]))
        return config.with_own(replace(settings, classifiers=[], over=over))

    def teacher_runs(self, config: Config) -> Sequence[str]:
        """Those that were given or made."""
        return config.of(FusionSettings).over

    def teacher_answers(
        self, config: Config, verdicts: Sequence[Verdict], evidence: Sequence[Evidence | None]
    ) -> Sequence[Verdict]:
        """As the settings say."""
        return fused_answers(verdicts, evidence, config.of(FusionSettings).answers)

    def finished(self, config: Config) -> Config:
        """New images are answered by the student alone."""
        return super().finished(config).with_own(replace(config.of(FusionSettings), classifiers=[], over=[]))

    def matters(self, config: Config) -> dict[str, Any]:
        """All but where the fused runs lie, which are inputs by what they know."""
        own = MethodSpec.matters(self, config)["fusion"]
        return super().matters(config) | {
            "fusion": {name: value for name, value in own.items() if name not in ("classifiers", "over")}
        }

    def learned(self, config: Config) -> str:
        """The student."""
        return "class embeddings and a bias, from what several classifiers answer"

    def outcome(self, finished: FinishedRun) -> dict[str, Any]:
        """Every classifier's part, beside what transduction tells."""
        return super().outcome(finished) | {"fusion": fusion_outcome(finished)}


def _with_student(context: BuildContext, images: TrainingImages, text_CD: torch.Tensor) -> TransductFit:
    """The transductive answer over the mean of the runs, and the student as the classifier of new images."""
    if images.answer_NC is None:
        raise UserError(
            "Setting fusion.classifiers=[] leaves nothing to fuse: name methods there, or finished runs in fusion.over."
        )
    settings, scale = context.config.of(FusionSettings), context.clip.logit_scale
    fitted = fit_images(context, images, text_CD)
    row_M = taught_rows(len(images.unlabelled_U), len(text_CD))
    index_M = images.unlabelled_U[row_M]
    member_MC = images.answer_NC[index_M].to(text_CD)
    share_MC = fitted.labels.dense(row_M.to(text_CD.device))
    target_MC = settings.transduction * share_MC + (1 - settings.transduction) * member_MC
    feature_MD = images.feature_ND[index_M].to(text_CD)
    head = learn_student(feature_MD, target_MC, text_CD, scale=scale, hold=settings.student_strength)
    return replace(fitted, head=head, text_strength=1.0)


SPEC = FusionSpec()
