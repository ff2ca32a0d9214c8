"""Settings of the miniature CLIP's pre-training: a frozen dataclass, a YAML file and ``key=value`` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raydapt.errors import UserError
from raydapt.settings.tree import apply_override, read_yaml, settings_from_tree


@dataclass(frozen=True, kw_only=True)
class ClipPretraining:
    """Everything that decides the weights, and where they go.

    The learning rate rises over ``warmup_share`` of the run, stays, and falls to zero over the last ``decay_share``.
    """

    data: str | None = None
    """Folder that holds ``pretrain/``; None takes the environment's RAYDAPT_DATA."""
    storage: str = "runs/zoo"
    """Checkpoints and the decoded images go here."""
    name: str = "clip"
    """Name of the run; the same storage and name resume it."""
    export_to: str | None = None
    """Folder that receives the averaged weights at every checkpoint; None: ``{storage}/{name}/export``."""
    seed: int = 0
    samples: int = 1_024_000
    """Images seen in all, over all workers."""
    batch_size: int = 512
    """Images per step, over all workers."""
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"photos": 0.52, "aerial": 0.31, "digits": 0.1, "captions": 0.07}
    )
    """Share of each domain in a batch."""
    source_weights: Mapping[str, float] = field(
        default_factory=lambda: {"tiny-imagenet": 0.55, "cifar100": 0.1, "caltech101": 0.17, "pacs-photo": 0.18}
    )
    """Share of each collection among the photos."""
    photo_classes: int = 96
    """Photographed classes per step (of some 380): each text costs about as much as an image."""
    vocabulary_size: int = 4096
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon orthogonalises the updates of the transformers' matrices; AdamW takes the other parameters."""
    learning_rate: float = 1.5e-3
    """Of AdamW."""
    matrix_learning_rate: float = 3e-3
    """Of Muon, in AdamW's units."""
    weight_decay: float = 0.1
    """Of matrices; vectors have none."""
    warmup_share: float = 0.02
    decay_share: float = 0.25
    clip_grad_norm: float = 1.0
    average_decay: float = 0.998
    """Of the exponential moving average of the weights, per step."""
    workers: int = 1
    """Ray Train workers; more than one train data-parallel."""
    threads: int = 2
    """CPU threads per worker."""
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpoint_every_s: float = 240.0
    log_every_steps: int = 20


def read_settings(arguments: Sequence[str]) -> ClipPretraining:
    """Reads ``FILE.yaml key=value …``.

    Raises:
        UserError: No file, a broken one, an unknown key or a value of the wrong kind.
    """
    if not arguments:
        raise UserError("No job file was given: say pretraining/jobs/clip.yaml, then any key=value.")
    tree = read_yaml(arguments[0])
    for item in arguments[1:]:
        apply_override(tree, item)
    return settings_from_tree(ClipPretraining, tree)
