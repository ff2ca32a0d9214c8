"""The settings of Co-Reg, resolved: the wordings that vote, and lengths that fit each other."""

import hashlib
from dataclasses import replace

from raydapt.data.classes import ClassSpace, check_templates
from raydapt.data.named_sets import annotation_templates, named_set
from raydapt.errors import UserError
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.models.clip import imagenet_templates
from raydapt.run.finished import open_run
from raydapt.settings.config import Config
from raydapt.train.job import CHECKPOINT


def resolve_coreg(config: Config) -> CoregSettings:
    """Templates as a list.

    Raises:
        UserError: For a wording without a place for the class name, or a warm-up that is the whole training.
    """
    coreg, train = config.coreg, config.train
    if coreg.warmup_epochs >= train.epochs:
        raise UserError(
            f"Setting coreg.warmup_epochs={coreg.warmup_epochs} leaves nothing of train.epochs={train.epochs} to "
            "co-training: lower the one or raise the other."
        )
    if coreg.templates == "imagenet":
        templates = imagenet_templates()
    elif coreg.templates == "set":
        templates = tuple(config.data.templates)
    elif coreg.templates == "small":
        known = named_set(config.data.source)
        templates = known.annotation_templates if known else annotation_templates()
    else:
        templates = tuple(coreg.templates)
    check_templates(templates, setting="coreg.templates")
    return replace(coreg, templates=list(templates))


def voter_digests(config: Config, classes: ClassSpace) -> tuple[str, ...]:
    """What the runs of ``coreg.voters`` have learned, as digests.

    Raises:
        UserError: For a folder that is no finished run, a run of other classes, or one that has seen labels.
    """
    digests = []
    for folder in config.coreg.voters:
        run, voter = open_run(folder)
        if list(voter.data.class_names) != list(classes.names):
            raise UserError(
                f"Setting coreg.voters: run {folder!r} tells {len(voter.data.class_names)} classes apart that are not "
                f"the {len(classes.names)} of this job: give a run of the same classes in the same order."
            )
        if voter.data.paradigm != "ul":
            raise UserError(
                f"Setting coreg.voters: run {folder!r} was given labels (data.paradigm={voter.data.paradigm}): only "
                "runs without any can vote."
            )
        learned = run.read_bytes(CHECKPOINT) if run.exists(CHECKPOINT) else b""
        digests.append(run.read_json("fingerprint.json")["fingerprint"] + hashlib.sha256(learned).hexdigest()[:16])
    return tuple(digests)
