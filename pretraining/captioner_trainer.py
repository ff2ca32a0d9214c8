"""The training state of the miniature captioner's pre-training: the loss, one step, and what a resume needs.

Nothing here knows of Ray: `pretraining.captioner_pretraining` drives it, on one worker or several.

Shapes: ``N`` samples, ``L`` tokens, ``A`` answered tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlavaForConditionalGeneration

from pretraining.captioner_batches import ExchangeMaker
from pretraining.captioner_model import CaptionerShape, build_captioner, build_processor, build_tokenizer
from pretraining.captioner_sentences import tokenizer_texts
from pretraining.captioner_settings import CaptionerPretraining
from pretraining.captioner_start import start_from_clip
from pretraining.clip_batches import PretrainingImages
from pretraining.clip_trainer import data_folder
from pretraining.diffusion_trainer import build_optimizer
from pretraining.pretraining_data import corpus
from pretraining.training_state import TrainingState


class CaptioningTask(nn.Module):
    """Weighted cross-entropy of the answers' tokens; logits are only made where they count."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model: Any = model

    def forward(
        self, images_NCHW: Tensor, token_NL: Tensor, present_NL: Tensor, weight_NL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the share of the most weighted tokens (those that name a class) that are predicted right."""
        states_NLD = self.model.model(
            input_ids=token_NL, pixel_values=images_NCHW, attention_mask=present_NL, use_cache=False
        ).last_hidden_state
        asked_NL = weight_NL[:, 1:] > 0
        logits_AV = self.model.lm_head(states_NLD[:, :-1][asked_NL]).float()
        target_A, weight_A = token_NL[:, 1:][asked_NL], weight_NL[:, 1:][asked_NL]
        loss = (F.cross_entropy(logits_AV, target_A, reduction="none") * weight_A).sum() / weight_A.sum()
        named_A = weight_A == weight_A.max()
        hits = (logits_AV.detach().argmax(1) == target_A)[named_A].float().mean()
        return loss, hits


class CaptionerPretrainer(TrainingState):
    """One worker's training state.

    Attributes:
        processor: The image processor and the tokenizer that go with the model.
    """

    def __init__(
        self,
        settings: CaptionerPretraining,
        *,
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda task: task,
    ) -> None:
        self.settings, self.rank, self.world = settings, rank, world
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        shape = CaptionerShape()
        images = PretrainingImages.read(data_folder(settings.data), Path(settings.storage) / "cache")
        texts = corpus([images.captioned]) + tokenizer_texts(images.vocabulary.names)
        tokenizer = build_tokenizer(
            texts, vocabulary_size=settings.vocabulary_size, context_length=shape.context_length
        )
        self.processor = build_processor(tokenizer, shape)
        self.batches = ExchangeMaker(images, tokenizer, settings, shape, rank=rank, world=world)
        model: Any = build_captioner(tokenizer, shape)
        start_from_clip(model, tokenizer, images.vocabulary, self.batches.make(0).images_NCHW, shape)
        self.task = wrap(CaptioningTask(model))
        others = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model, model.lm_head])
        optimizers = [
            build_optimizer(model.model.vision_tower, settings.tower_learning_rate, settings.weight_decay),
            build_optimizer(others, settings.learning_rate, settings.weight_decay),
        ]
        super().__init__(settings, model, optimizers)

    def train_step(self) -> dict[str, float]:
        """Draws a batch, learns from it, and moves the average."""
        settings = self.settings
        batch = self.batches.make(self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"), sdpa_kernel(SDPBackend.MATH):
            loss, hits = self.task(batch.images_NCHW, batch.token_NL, batch.present_NL, batch.weight_NL)
        self.learn(loss)
        return {"loss": float(loss.detach()), "hits": float(hits)}
