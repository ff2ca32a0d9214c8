"""A LLaVA of a few thousand random weights that transformers and vLLM load, for tests that read no captions."""

from pathlib import Path

import torch

from pretraining.captioner_model import (
    CaptionerShape,
    build_captioner,
    build_processor,
    build_tokenizer,
    export_captioner,
)

SHAPE = CaptionerShape(
    image_px=32, patch_px=16, vision_width=64, vision_layers=1, vision_heads=2,
    text_width=64, text_layers=1, text_heads=2, text_hidden=64,
)  # fmt: skip
TEXTS = (
    "Describe the land use in the satellite image concisely, less than 20 words.",
    "Describe the common visual attributes of the objects in all the photos concisely, less than 20 words.",
    "a photo of a dog.",
    "an aerial photo of a forest.",
)


def save_tiny_captioner(folder: Path, *, seed: int = 0) -> str:
    """Writes it as a folder in LLaVA's layout and returns the folder's name; every seed answers something else."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(TEXTS, vocabulary_size=400, context_length=SHAPE.context_length)
    model = build_captioner(tokenizer, SHAPE)
    export_captioner(model, model.state_dict(), build_processor(tokenizer, SHAPE), folder)
    return str(folder)
