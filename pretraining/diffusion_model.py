"""The parts of the miniature Stable Diffusion, and its folder on disk.

Every part is the library's own class at a small size: diffusers' AutoencoderKL and UNet2DConditionModel, transformers'
CLIPTextModel with the weights of the miniature CLIP's text tower, and a DPM-Solver++ schedule.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from pretraining.clip_model import CONFIG_FILE, IMAGE_PX, WEIGHTS_FILE, build_model
from pretraining.clip_tokenizer import as_transformers

CLIP_FOLDER = Path(__file__).parents[1] / "raydapt" / "models" / "mini" / "clip"
TEXT_TOKENS = 32
"""Tokens of a prompt: longer ones are cut. The CLIP reads 77, which would only cost time here."""
NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}
"""Stable Diffusion's noise, with the velocity as the target (Salimans and Ho, 2022), which is learned faster."""


def build_vae(channels: Sequence[int], latent_channels: int) -> AutoencoderKL:
    """An untrained autoencoder that halves the side once per width but the last."""
    depth = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=IMAGE_PX,
        scaling_factor=1.0,  # `standardise_latents` makes it so
    )


def build_unet(channels: Sequence[int], latent_channels: int, *, text_width: int, side: int) -> UNet2DConditionModel:
    """An untrained denoiser; it attends to the text (and across positions) at all but its finest grid."""
    depth = len(channels)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (depth - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (depth - 1) + ("UpBlock2D",),
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers reads it as the number of heads
        norm_num_groups=16,
    )


def load_clip_weights(folder: Path = CLIP_FOLDER) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The ``model_cfg`` and the weights, in single precision, of an open_clip folder."""
    config = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]
    weights = {name: tensor.float() for name, tensor in load_file(str(folder / WEIGHTS_FILE)).items()}
    return config, weights


def load_clip(folder: Path = CLIP_FOLDER) -> open_clip.CLIP:
    """The frozen miniature CLIP, for the perceptual loss."""
    config, weights = load_clip_weights(folder)
    model = build_model(vocabulary_size=config["text_cfg"]["vocab_size"])
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def convert_text_encoder(folder: Path = CLIP_FOLDER) -> CLIPTextModel:
    """The miniature CLIP's text tower as transformers' CLIPTextModel: the same hidden states, for short texts."""
    config, weights = load_clip_weights(folder)
    text = config["text_cfg"]
    width = text["width"]
    model: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            max_position_embeddings=TEXT_TOKENS,
            hidden_act="gelu",
            projection_dim=config["embed_dim"],
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=text["vocab_size"] - 1,
        )
    )
    renamed = {
        "embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"][:TEXT_TOKENS],
    }
    for kind in ("weight", "bias"):
        renamed[f"final_layer_norm.{kind}"] = weights[f"ln_final.{kind}"]
        for layer in range(text["layers"]):
            theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            for part, rows in zip("qkv", weights[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                renamed[f"{ours}.self_attn.{part}_proj.{kind}"] = rows
            renamed[f"{ours}.self_attn.out_proj.{kind}"] = weights[f"{theirs}.attn.out_proj.{kind}"]
            for there, here in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                renamed[f"{ours}.{here}.{kind}"] = weights[f"{theirs}.{there}.{kind}"]
            for there, here in (("c_fc", "fc1"), ("c_proj", "fc2")):
                renamed[f"{ours}.mlp.{here}.{kind}"] = weights[f"{theirs}.mlp.{there}.{kind}"]
    model.load_state_dict(renamed)
    converted: CLIPTextModel = model.eval().requires_grad_(False)
    return converted


def load_tokenizer(folder: Path = CLIP_FOLDER) -> PreTrainedTokenizerFast:
    """The miniature CLIP's tokenizer, cut to the denoiser's text length."""
    return as_transformers(Tokenizer.from_file(str(folder / "tokenizer.json")), context_length=TEXT_TOKENS)


@torch.no_grad()
def encode_texts(texts: Sequence[str], tokenizer: Any, encoder: CLIPTextModel, *, batch: int = 512) -> Tensor:
    """What the denoiser reads of each text, padded as `StableDiffusionPipeline` pads: states_TLD, half precision."""
    states = []
    for start in range(0, len(texts), batch):
        token_TL = tokenizer(
            list(texts[start : start + batch]), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        states.append(encoder(token_TL).last_hidden_state.half())
    return torch.cat(states)


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, latents_NCHW: Tensor) -> None:
    """Rewrites the 1 x 1 convolutions around the latents so that each channel has mean 0 and deviation 1.

    What the autoencoder reconstructs stays the same; the pipeline's ``scaling_factor`` is then 1.

    Args:
        vae: Changed in place.
        latents_NCHW: Its latents of many training images.
    """
    channels = latents_NCHW.shape[1]
    mean_C = latents_NCHW.mean((0, 2, 3))
    std_C = latents_NCHW.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:channels] /= std_C.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean_C) / std_C
    before.bias[channels:] -= 2 * std_C.log()  # the second half is the log-variance
    after.bias += (after.weight * mean_C.view(1, -1, 1, 1)).sum((1, 2, 3))
    after.weight *= std_C.view(1, -1, 1, 1)


def export_pipeline(vae: AutoencoderKL, unet: UNet2DConditionModel, folder: Path) -> None:
    """Writes a `StableDiffusionPipeline` folder; each file is replaced in one step.

    The convolutional parts are stored in half precision, which diffusers loads in single precision; transformers would
    load the text encoder as it is stored.
    """
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=convert_text_encoder(),
        tokenizer=load_tokenizer(),
        unet=copy.deepcopy(unet).half(),
        scheduler=DPMSolverMultistepScheduler(**NOISE_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        pipeline.save_pretrained(scratch)
        for file in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            target = folder / file.relative_to(scratch)
            target.parent.mkdir(exist_ok=True)
            file.chmod(0o644)
            file.replace(target)
