"""The training state of the miniature CLIP's pre-training: schedule, optimisers, one step, and what a resume needs.

Nothing here knows of Ray: `pretraining.clip_pretraining` drives it, on one worker or several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretraining.clip_batches import BatchMaker, PretrainingImages
from pretraining.clip_model import PretrainingTask, build_model
from pretraining.clip_settings import ClipPretraining
from pretraining.clip_tokenizer import train_tokenizer
from pretraining.clip_vocabulary import all_texts
from pretraining.pretraining_data import corpus
from pretraining.training_state import TrainingState
from raydapt.errors import UserError


def data_folder(given: str | None) -> Path:
    """The folder with ``pretrain/``: the given one, else the environment's.

    Raises:
        UserError: Nobody said where it is, or it is not there.
    """
    chosen = given or os.environ.get("RAYDAPT_DATA")
    if not chosen:
        raise UserError("data is not set: give data=FOLDER or set RAYDAPT_DATA to the folder that holds pretrain/.")
    if not (Path(chosen) / "pretrain").is_dir():
        raise UserError(f"data={chosen} has no folder pretrain/: point it (or RAYDAPT_DATA) at the research images.")
    return Path(chosen)


def domain_counts(shares: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Images of each domain in a worker's batch; rounding goes to the photos."""
    counts = {domain: round(share * batch_size) for domain, share in shares.items()}
    counts["photos"] += batch_size - sum(counts.values())
    return counts


def build_optimizers(module: nn.Module, settings: ClipPretraining) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformers (if asked for), AdamW for everything else."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    inner = [parameter for name, parameter in named if "resblocks" in name and parameter.ndim == 2]
    taken = {id(parameter) for parameter in inner} if settings.optimizer == "muon" else set()
    rest = [parameter for _, parameter in named if id(parameter) not in taken]
    groups = [
        {"params": [one for one in rest if one.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [one for one in rest if one.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    ]
    if taken:
        optimizers.append(
            torch.optim.Muon(
                inner,
                lr=settings.matrix_learning_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


class Pretrainer(TrainingState):
    """One worker's training state.

    Attributes:
        task: The model and its loss, wrapped for data parallelism when there are several workers.
    """

    task: nn.Module

    def __init__(
        self,
        settings: ClipPretraining,
        *,
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda task: task,
    ) -> None:
        self.settings, self.rank, self.world = settings, rank, world
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        images = PretrainingImages.read(data_folder(settings.data), Path(settings.storage) / "cache")
        texts = corpus([images.captioned]) + all_texts(images.vocabulary)
        self.tokenizer: Tokenizer = train_tokenizer(texts, vocabulary_size=settings.vocabulary_size)
        self.batches = BatchMaker(
            images,
            self.tokenizer,
            counts=domain_counts(settings.shares, settings.batch_size // world),
            source_weights=settings.source_weights,
            photo_classes=settings.photo_classes,
            seed=settings.seed,
            rank=rank,
        )
        model = build_model(vocabulary_size=self.tokenizer.get_vocab_size())
        task = PretrainingTask(model)
        self.task = wrap(task)
        super().__init__(settings, model, build_optimizers(task, settings))

    def train_step(self) -> dict[str, float]:
        """Draws a batch, learns from it, and moves the average."""
        settings = self.settings
        batch = self.batches.make(self.step)
        # PyTorch's fused CPU attention is three times slower than plain matrix products on 17 tokens.
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"), sdpa_kernel(SDPBackend.MATH):
            loss, hits = self.task(
                batch.images_NCHW, batch.concept_N, batch.class_tokens_KL, batch.wrong_KK, batch.caption_tokens_JL
            )
        self.learn(loss)
        return {"loss": float(loss.detach()), "hits": float(hits)}
