"""Settings of the miniature captioner's pre-training: a frozen dataclass, a YAML file and ``key=value`` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raydapt.errors import UserError
from raydapt.settings.tree import apply_override, read_yaml, settings_from_tree


@dataclass(frozen=True, kw_only=True)
class CaptionerPretraining:
    """Everything that decides the weights, and where they go.

    The image tower starts from the miniature CLIP's; everything is trained. The learning rate rises over
    ``warmup_share`` of the run, stays, and falls to zero over the last ``decay_share``.
    """

    data: str | None = None
    """Folder that holds ``pretrain/``; None takes the environment's RAYDAPT_DATA."""
    storage: str = "runs/zoo"
    """Checkpoints and the decoded images go here."""
    name: str = "captioner"
    """Name of the run; the same storage and name resume it."""
    export_to: str | None = None
    """Folder that receives the averaged weights at every checkpoint; None: ``{storage}/{name}/export``."""
    seed: int = 0
    samples: int = 448_000
    """Questions answered in all, over all workers."""
    batch_size: int = 64
    """Questions per step, over all workers."""
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"photos": 0.33, "cartoons": 0.15, "aerial": 0.15, "satellite": 0.15, "digits": 0.22}
    )
    """Share of each style among the questions about labelled images."""
    source_weights: Mapping[str, float] = field(
        default_factory=lambda: {"tiny-imagenet": 0.5, "cifar100": 0.1, "caltech101": 0.17, "pacs-photo": 0.23}
    )
    """Share of each collection among the photos."""
    group_share: float = 0.15
    """Share of questions about four images of one class on one canvas."""
    scene_share: float = 0.04
    """Share of questions about a photo that people have captioned."""
    hint_share: float = 0.06
    """Share of questions that name a class themselves, as the paper's do for flowers; a third of these is wrong."""
    name_weight: float = 3.0
    """Weight in the loss of the tokens that name the class; the others weigh 1."""
    vocabulary_size: int = 3072
    learning_rate: float = 2e-3
    """Of the projector and the language model, which start from nothing."""
    tower_learning_rate: float = 6e-4
    """Of the image tower, which has learned before."""
    weight_decay: float = 0.05
    """Of matrices; vectors have none."""
    warmup_share: float = 0.02
    decay_share: float = 0.4
    clip_grad_norm: float = 1.0
    average_decay: float = 0.995
    """Of the exponential moving average of the weights, per step."""
    workers: int = 1
    """Ray Train workers; more than one train data-parallel."""
    threads: int = 1
    """CPU threads per worker."""
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpoint_every_s: float = 180.0
    log_every_steps: int = 20


def read_settings(arguments: Sequence[str]) -> CaptionerPretraining:
    """Reads ``FILE.yaml key=value …``.

    Raises:
        UserError: No file, a broken one, an unknown key or a value of the wrong kind.
    """
    if not arguments:
        raise UserError("No job file was given: say pretraining/jobs/captioner.yaml, then any key=value.")
    tree = read_yaml(arguments[0])
    for item in arguments[1:]:
        apply_override(tree, item)
    return settings_from_tree(CaptionerPretraining, tree)
