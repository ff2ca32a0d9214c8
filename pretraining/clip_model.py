"""The miniature CLIP itself: an open_clip configuration, a loss over all class texts, and its folder on disk.

Shapes: ``N`` images, ``K`` class texts (one per concept of the step), ``J`` captions, ``L`` tokens, ``D`` width.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from pretraining.clip_tokenizer import save_tokenizer

CONTEXT_LENGTH = 77
IMAGE_PX = 32
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
WEIGHTS_FILE = "open_clip_model.safetensors"
CONFIG_FILE = "open_clip_config.json"


def model_config(*, vocabulary_size: int) -> dict[str, Any]:
    """open_clip's ``model_cfg``: a plain vision transformer with a class token and a causal text transformer."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": IMAGE_PX, "patch_size": 8, "width": 128, "layers": 5, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary_size,
            "hf_tokenizer_name": "mini",
            "tokenizer_kwargs": {"clean": "whitespace"},
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def preprocess_config() -> dict[str, Any]:
    """open_clip's ``preprocess_cfg``: shorter side to 32 px, centre crop, ImageNet normalisation."""
    return {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest"}


def build_model(*, vocabulary_size: int) -> open_clip.CLIP:
    """The untrained model, by open_clip's own classes; initialised from torch's global seed."""
    cfg = model_config(vocabulary_size=vocabulary_size)
    text_cfg = {key: value for key, value in cfg["text_cfg"].items() if "tokenizer" not in key}
    model = open_clip.CLIP(embed_dim=cfg["embed_dim"], vision_cfg=cfg["vision_cfg"], text_cfg=text_cfg)
    initialise_vision(model.visual)
    return model


@torch.no_grad()
def initialise_vision(tower: Any) -> None:
    """Starts the vision transformer where trained ones tend to be, which spares it much of the way.

    Sinusoidal positions, queries and keys whose product is near the identity (neighbours attend to each other) and
    values and outputs whose product is near its negative: "Mimetic Initialization of Self-Attention Layers"
    (Trockman and Kolter, 2023), https://arxiv.org/abs/2305.09828
    """
    side, width = tower.grid_size[0], tower.positional_embedding.shape[1]
    tower.positional_embedding[1:] = sine_positions(side, width)
    for block in tower.transformer.resblocks:
        heads = block.attn.num_heads
        head_width = width // heads
        query, key, value = block.attn.in_proj_weight.chunk(3)
        for head in range(heads):
            rows = slice(head * head_width, (head + 1) * head_width)
            left_DD, root_D, right_DD = near_identity(width, random=0.7, identity=0.7)
            query[rows] = (left_DD * root_D)[:, :head_width].T
            key[rows] = (right_DD * root_D)[:, :head_width].T
        left_DD, root_D, right_DD = near_identity(width, random=0.4, identity=-0.4)
        value.copy_((right_DD * root_D).T)
        block.attn.out_proj.weight.copy_(left_DD * root_D)


def near_identity(width: int, *, random: float, identity: float) -> tuple[Tensor, Tensor, Tensor]:
    """Factors ``random * noise + identity * I`` into ``(left * root) @ (right * root).T``."""
    noise_DD = torch.randn(width, width) / width**0.5
    left_DD, singular_D, right_DD = torch.linalg.svd(random * noise_DD + identity * torch.eye(width))
    return left_DD, singular_D.sqrt(), right_DD.T


def sine_positions(side: int, width: int) -> Tensor:
    """Two-dimensional sine and cosine positions of a ``side`` x ``side`` grid, row by row, shaped [side², width]."""
    quarter = width // 4
    frequencies = 1.0 / 10000 ** (torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([axis.flatten()[:, None] * frequencies for axis in (rows, columns)], 1)
    return torch.cat([angles.sin(), angles.cos()], 1) / 2


def encode_text_cropped(model: open_clip.CLIP, tokens_KL: Tensor) -> Tensor:
    """``model.encode_text`` on sequences cropped to the longest one: causal attention never looks past its end.

    Returns:
        texts_KD: Unnormalised text embeddings.
    """
    length = tokens_KL.shape[1]
    tokens_KLD = model.token_embedding(tokens_KL) + model.positional_embedding[:length]
    tokens_KLD = model.transformer(tokens_KLD, attn_mask=model.attn_mask[:length, :length])
    ends_K = tokens_KL.argmax(1)
    pooled_KD = model.ln_final(tokens_KLD)[torch.arange(len(tokens_KL)), ends_K]
    texts_KD: Tensor = pooled_KD @ model.text_projection
    return texts_KD


def class_text_loss(logits_NK: Tensor, concept_N: Tensor, wrong_KK: Tensor) -> Tensor:
    """Cross-entropy of each image against the texts of all concepts; texts that are no mistake do not count.

    Args:
        logits_NK: Scaled similarities of images and the one text drawn for each concept.
        concept_N: The concept of each image.
        wrong_KK: True where the text of concept j is a mistake for an image of concept i.
    """
    counts_NK = wrong_KK[concept_N].scatter(1, concept_N[:, None], True)
    return F.cross_entropy(logits_NK.float().masked_fill(~counts_NK, -torch.inf), concept_N)


def caption_loss(logits_NN: Tensor) -> Tensor:
    """CLIP's symmetric contrastive loss over a batch of (image, caption) pairs."""
    target_N = torch.arange(len(logits_NN))
    return (F.cross_entropy(logits_NN.float(), target_N) + F.cross_entropy(logits_NN.float().T, target_N)) / 2


class PretrainingTask(nn.Module):
    """One step's forward pass: labelled images against all class texts, captioned images against their captions."""

    def __init__(self, model: open_clip.CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        images_NCHW: Tensor,
        concept_N: Tensor,
        class_tokens_KL: Tensor,
        wrong_KK: Tensor,
        caption_tokens_JL: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Labelled images come first, then the J captioned ones.

        Args:
            images_NCHW: Normalised pixels.
            concept_N: Per labelled image, which of the K class texts is its own.
            class_tokens_KL: One text per concept of the step.
            wrong_KK: Which of those texts is a mistake for which concept.
            caption_tokens_JL: The captions.

        Returns:
            The loss, and the share of labelled images whose nearest text is their own.
        """
        labelled = len(concept_N)
        images_ND = F.normalize(self.model.visual(images_NCHW).float(), dim=1)
        classes_KD = F.normalize(encode_text_cropped(self.model, class_tokens_KL).float(), dim=1)
        captions_JD = F.normalize(encode_text_cropped(self.model, caption_tokens_JL).float(), dim=1)
        scale = self.model.logit_scale.clamp(max=4.6052).exp()
        logits_NK = scale * images_ND[:labelled] @ classes_KD.T
        loss = class_text_loss(logits_NK, concept_N, wrong_KK) * labelled
        loss = loss + caption_loss(scale * images_ND[labelled:] @ captions_JD.T) * len(caption_tokens_JL)
        hits = (logits_NK.detach().argmax(1) == concept_N).float().mean()
        return loss / len(images_NCHW), hits


def export_folder(weights: Mapping[str, Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes an open_clip ``local-dir`` folder; each file is replaced in one step, so readers never see half of one.

    Weights are stored in half precision: half the size, and no measurable difference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": model_config(vocabulary_size=tokenizer.get_vocab_size()),
        "preprocess_cfg": preprocess_config(),
    }
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        temporary = Path(scratch)
        save_tokenizer(tokenizer, temporary, context_length=CONTEXT_LENGTH)
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        halves = {name: tensor.detach().half().contiguous() for name, tensor in weights.items()}
        save_file(halves, str(temporary / WEIGHTS_FILE), metadata={"format": "pt"})
        for file in sorted(temporary.iterdir()):
            file.chmod(0o644)
            file.replace(folder / file.name)
