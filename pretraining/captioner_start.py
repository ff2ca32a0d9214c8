"""Where the miniature captioner's training starts: at what the miniature CLIP knows already.

The image tower is the CLIP's. The projector begins as the CLIP's own projection of its class token, the last layer's
attention as a copy of what it attends to, and the output weights of the words that class names begin with as the CLIP's
embeddings of sentences with these names. So what is left to learn is language, and where to look for the class; the
words of hundreds of classes need not be learned one by one.

Shapes: ``W`` width of the image tower, ``D`` width of the CLIP's shared space, ``N`` images, ``H`` text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from pretraining.captioner_model import CLIP_FOLDER, CaptionerShape, clip_vision_weights
from pretraining.clip_batches import crop, tokenise
from pretraining.clip_model import encode_text_cropped
from pretraining.clip_vocabulary import TEMPLATES, Vocabulary
from pretraining.diffusion_model import load_clip

TEMPLATES_USED = 4
"""Sentences per name and domain whose embeddings are averaged."""
SHIFT = 3.0
"""Moves what the projector carries to where its activation is nearly the identity."""
STATE_NORM = 4.0
"""Length of a projected class token: its numbers stay small beside `SHIFT`."""
COPY_GAIN = 0.5
WORD_GAIN = 1.2
"""About the CLIP's logit scale of 16 over the length of a normalised state of 192 numbers."""


@torch.no_grad()
def start_projector(model: Any, clip: Any, images_NCHW: Tensor) -> None:
    """Makes the projector take a class token to its place in the CLIP's shared space, in the first D of the H numbers.

    The CLIP normalises a state before it projects it; here its typical spread over ``images_NCHW`` stands in for that.
    """
    whole = model.model
    state_NW = whole.vision_tower(images_NCHW, output_hidden_states=True).hidden_states[-1][:, 0]
    width = state_NW.shape[1]
    centre_WW = torch.eye(width) - 1.0 / width
    spread = (state_NW @ centre_WW).std(1, unbiased=False).mean()
    proj_WD, gain_W, bias_W = clip.visual.proj, clip.visual.ln_post.weight, clip.visual.ln_post.bias
    linear_DW = proj_WD.T @ torch.diag(gain_W / spread) @ centre_WW
    offset_D = proj_WD.T @ bias_W
    scale = STATE_NORM / (state_NW @ linear_DW.T + offset_D).norm(dim=1).mean()
    first, second = whole.multi_modal_projector.linear_1, whole.multi_modal_projector.linear_2
    size = len(offset_D)
    first.weight[:size], first.bias[:size] = linear_DW * scale, offset_D * scale + SHIFT
    second.weight[:size] = 0.0
    second.weight[:size, :size] = torch.eye(size)
    second.bias[:size] = -SHIFT


@torch.no_grad()
def start_copying(model: Any, size: int) -> None:
    """Makes the heads of the last layer pass on the first ``size`` numbers of what they attend to."""
    attention = model.model.language_model.layers[-1].self_attn
    attention.v_proj.weight[:size] = 0.0
    attention.v_proj.weight[:size, :size] = torch.eye(size)
    attention.o_proj.weight[:size] = 0.0
    attention.o_proj.weight[:size, :size] = COPY_GAIN * torch.eye(size)


@torch.no_grad()
def embed_names(clip: Any, tokenizer: Tokenizer, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The CLIP's unit embedding of every name, over some sentences of each domain that has it."""
    sentences: dict[str, list[str]] = {}
    for domain, templates in TEMPLATES.items():
        for at in vocabulary.names_of(domain):
            name = vocabulary.names[at]
            distinct = list(dict.fromkeys(templates))[:TEMPLATES_USED]
            sentences.setdefault(name, []).extend(template.format(name) for template in distinct)
    flat = [sentence for own in sentences.values() for sentence in own]
    parts = [
        F.normalize(encode_text_cropped(clip, crop(tokenise(tokenizer, flat[at : at + 512]))), dim=1)
        for at in range(0, len(flat), 512)
    ]
    of_name = torch.split(torch.cat(parts), [len(own) for own in sentences.values()])
    return {name: F.normalize(own.mean(0), dim=0) for name, own in zip(sentences, of_name, strict=True)}


@torch.no_grad()
def start_words(model: Any, tokenizer: Any, names: dict[str, Tensor]) -> list[int]:
    """Gives the token that a name begins with the name's embedding as output weights; several names are averaged.

    Returns:
        The tokens.
    """
    middle_D = torch.stack(list(names.values())).mean(0)
    rows: dict[int, list[Tensor]] = {}
    for name, embedding_D in names.items():
        rows.setdefault(tokenizer(f" {name}", add_special_tokens=False).input_ids[0], []).append(embedding_D - middle_D)
    for token, several in rows.items():
        weight_H = model.lm_head.weight[token]
        weight_H[: len(middle_D)] = WORD_GAIN * torch.stack(several).mean(0)
    return list(rows)


def start_from_clip(
    model: Any,
    tokenizer: Any,
    vocabulary: Vocabulary,
    images_NCHW: Tensor,
    shape: CaptionerShape,
    *,
    folder: Path = CLIP_FOLDER,
) -> Sequence[int]:
    """Puts the miniature CLIP's knowledge into an untrained captioner.

    Args:
        model: Changed in place.
        tokenizer: The captioner's.
        vocabulary: The names of the training's classes.
        images_NCHW: Some normalised training images.
        shape: Of the captioner: its text must be at least as wide as the CLIP's shared space.
        folder: The CLIP's.

    Returns:
        The tokens that class names begin with.
    """
    clip = load_clip(folder)
    model.model.vision_tower.load_state_dict(clip_vision_weights(shape, folder))
    start_projector(model, clip, images_NCHW)
    start_copying(model, clip.visual.proj.shape[1])
    return start_words(
        model, tokenizer, embed_names(clip, Tokenizer.from_file(str(folder / "tokenizer.json")), vocabulary)
    )
