"""The job that trains the miniature captioner.

    RAYDAPT_DATA=… python -m pretraining.captioner_pretraining pretraining/jobs/captioner.yaml [key=value …]

A small Llama learns, from the states of the miniature CLIP's image tower, to answer questions about images and about
groups of four in a sentence that names what is in them. Running the same command again resumes from the last
checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray.train

from pretraining import pretraining
from pretraining.captioner_model import export_captioner
from pretraining.captioner_settings import CaptionerPretraining, read_settings
from pretraining.captioner_trainer import CaptionerPretrainer
from pretraining.pretraining import export_path

__all__ = ["JOB", "export_path", "log_line", "main", "pretrain"]


def log_line(trainer: CaptionerPretrainer, metrics: Mapping[str, float], images_per_s: float) -> str:
    """One screen line of numbers with units."""
    left_s = (trainer.steps - trainer.step) * trainer.settings.batch_size / max(images_per_s, 1e-9)
    return (
        f"step {trainer.step}/{trainer.steps} | loss {metrics['loss']:.3f} | tokens of names right "
        f"{metrics['hits']:.1%} | {images_per_s:.0f} questions/s | {trainer.seconds / 60:.1f} min | "
        f"ETA {left_s / 60:.0f} min"
    )


def export(trainer: CaptionerPretrainer, folder: Path) -> None:
    """Writes the averaged weights as a LLaVA folder."""
    export_captioner(trainer.model, trainer.average, trainer.processor, folder)


JOB = pretraining.Job(
    settings=CaptionerPretraining, read=read_settings, build=CaptionerPretrainer, export=export, log_line=log_line
)


def pretrain(settings: CaptionerPretraining) -> ray.train.Result:
    """Trains (or resumes) the miniature captioner on Ray Train."""
    return pretraining.pretrain(JOB, settings)


def main(arguments: Sequence[str]) -> int:
    """Entry point: the YAML file, then ``key=value`` overrides."""
    return pretraining.main(JOB, arguments)


if __name__ == "__main__":
    # By its real name, so that Ray sends workers a reference to this module and not a copy of its classes.
    from pretraining.captioner_pretraining import main as main_by_name

    sys.exit(main_by_name(sys.argv[1:]))
