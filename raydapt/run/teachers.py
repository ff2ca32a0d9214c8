"""Finished runs as teachers: their answers for the images of another run, as an artefact like any other.

Co-Reg asks the frozen model under many wordings. A run that has adapted the model to the same images knows more than
any wording, so the small students of `coreg` can start from its answers: adapt first, then make it small.
"""

import hashlib
from dataclasses import dataclass, replace

from raydapt.artefacts.answers import ANSWERS
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.data.classes import ClassSpace
from raydapt.errors import UserError
from raydapt.methods.guard import Verdict
from raydapt.methods.table import spec_of
from raydapt.run.finished import open_run
from raydapt.run.guarding import stored_judgement
from raydapt.settings.config import Config
from raydapt.store.fingerprint import Recipe
from raydapt.store.run_record import Run
from raydapt.train.job import CHECKPOINT


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """A finished run that teaches.

    Attributes:
        run: Its folder.
        config: Its settings.
        digest: Of what it has learned.
        answer: Which of its answers is meant.
    """

    run: Run
    config: Config
    digest: str
    answer: Verdict = "adapted"


def open_teacher(folder: str, classes: ClassSpace, *, setting: str) -> TeacherRun:
    """A finished run of the same classes, which `setting` names.

    Raises:
        UserError: For a folder that is no finished run, a run of other classes, or one that has seen labels.
    """
    run, config = open_run(folder)
    if list(config.data.class_names) != list(classes.names):
        raise UserError(
            f"Setting {setting}: run {folder!r} tells {len(config.data.class_names)} classes apart that are not "
            f"the {len(classes.names)} of this job: give a run of the same classes in the same order."
        )
    if config.data.paradigm != "ul":
        raise UserError(
            f"Setting {setting}: run {folder!r} was given labels (data.paradigm={config.data.paradigm}): only "
            "runs without any can teach."
        )
    learned = run.read_bytes(CHECKPOINT) if run.exists(CHECKPOINT) else b""
    digest = run.read_json("fingerprint.json")["fingerprint"] + hashlib.sha256(learned).hexdigest()[:16]
    return TeacherRun(run=run, config=config, digest=digest)


def teachers_of(config: Config, classes: ClassSpace) -> tuple[TeacherRun, ...]:
    """The finished runs that a method learns from, each with the answer that the method takes of it."""
    spec = spec_of(config.method)
    opened = [open_teacher(folder, classes, setting=spec.teachers_setting) for folder in spec.teacher_runs(config)]
    judged = [stored_judgement(teacher.run) for teacher in opened]
    answers = spec.teacher_answers(config, [verdict for verdict, _ in judged], [found for _, found in judged])
    return tuple(replace(teacher, answer=answer) for teacher, answer in zip(opened, answers, strict=True))


def answers_spec(number: int, teacher: TeacherRun, facts: PlanFacts, *, step: bool) -> ArtefactSpec:
    """A teacher's answers for the images of a run; a `step` is read by nothing but other artefacts."""
    settings: dict[str, object] = {"class_names": list(facts.classes.names)}
    if teacher.answer != "adapted":
        settings["answer"] = teacher.answer
    recipe = Recipe(
        kind=ANSWERS,
        settings=settings,
        inputs=(facts.features.fingerprint, teacher.digest),
        weights=facts.clip_identity,
    )
    return ArtefactSpec(
        name=f"{ANSWERS}_{number}", kind=ANSWERS, recipe=recipe, depends_on=("features",), step=step, job=teacher
    )
