"""The job that trains the miniature CLIP.

    RAYDAPT_DATA=… python -m pretraining.clip_pretraining pretraining/jobs/clip.yaml [key=value …]

A vision transformer learns, through the text tower, to name photos, aerial views and digits: every step encodes one
sentence per class, and the images of the step are classified among all of them; captioned photos are contrasted with
their captions. Running the same command again resumes from the last checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray.train

from pretraining import pretraining
from pretraining.clip_model import export_folder
from pretraining.clip_settings import ClipPretraining, read_settings
from pretraining.clip_trainer import Pretrainer
from pretraining.pretraining import export_path

__all__ = ["JOB", "export_path", "log_line", "main", "pretrain"]


def log_line(trainer: Pretrainer, metrics: Mapping[str, float], images_per_s: float) -> str:
    """One screen line of numbers with units."""
    left_s = (trainer.steps - trainer.step) * trainer.settings.batch_size / max(images_per_s, 1e-9)
    return (
        f"step {trainer.step}/{trainer.steps} | loss {metrics['loss']:.3f} | named right {metrics['hits']:.1%} | "
        f"{images_per_s:.0f} images/s | {trainer.seconds / 60:.1f} min | ETA {left_s / 60:.0f} min"
    )


def export(trainer: Pretrainer, folder: Path) -> None:
    """Writes the averaged weights as an open_clip folder."""
    export_folder(trainer.average, trainer.tokenizer, folder)


JOB = pretraining.Job(settings=ClipPretraining, read=read_settings, build=Pretrainer, export=export, log_line=log_line)


def pretrain(settings: ClipPretraining) -> ray.train.Result:
    """Trains (or resumes) the miniature CLIP on Ray Train."""
    return pretraining.pretrain(JOB, settings)


def main(arguments: Sequence[str]) -> int:
    """Entry point: the YAML file, then ``key=value`` overrides."""
    return pretraining.main(JOB, arguments)


if __name__ == "__main__":
    # By its real name, so that Ray sends workers a reference to this module and not a copy of its classes.
    from pretraining.clip_pretraining import main as main_by_name

    sys.exit(main_by_name(sys.argv[1:]))
