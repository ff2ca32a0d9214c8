"""A Stable Diffusion of a few thousand random weights, for tests that need no picture of anything."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pretraining.diffusion_model import NOISE_SCHEDULE, load_tokenizer

WIDTH = 16


def tiny_pipeline(*, width: int = WIDTH, seed: int = 0, prediction: str = "v_prediction") -> StableDiffusionPipeline:
    """An 16 px pipeline with 8 x 8 latents; `width` is that of the text states."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=4095,
        pad_token_id=0,
    )
    down: Any = ("DownBlock2D", "CrossAttnDownBlock2D")
    up: Any = ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, down_block_types=down, up_block_types=up,
        cross_attention_dim=width, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=load_tokenizer(),
        unet=unet.eval(),
        scheduler=DPMSolverMultistepScheduler(**{**NOISE_SCHEDULE, "prediction_type": prediction}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_tiny_pipeline(folder: Path, **settings: Any) -> str:
    """Writes it as a folder in diffusers' layout and returns the folder's name."""
    tiny_pipeline(**settings).save_pretrained(folder)
    return str(folder)
