"""A few thousand random weights in the layout of each diffusion pipeline that is known, for tests."""

from collections.abc import Callable
from typing import Any

import diffusers as d
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from pretraining.diffusion_model import NOISE_SCHEDULE, load_tokenizer
from tests.models.tiny_diffusion import tiny_pipeline

WIDTH = 32
_DOWN: Any = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP: Any = ("CrossAttnUpBlock2D", "UpBlock2D")


def _clip_text(kind: type, projection: int = WIDTH) -> Any:
    return kind(CLIPTextConfig(
        vocab_size=4096, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=1, eos_token_id=4095, pad_token_id=0, projection_dim=projection,
    )).eval()  # fmt: skip


def _words() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "photo", "of", "dog", "cat", "."])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=9, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=2)).eval()


def _vae(latents: int, **more: Any) -> d.AutoencoderKL:
    return d.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=latents, sample_size=16, **more,
    ).eval()  # fmt: skip


def _sdxl() -> Any:
    unet = d.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, down_block_types=_DOWN, up_block_types=_UP,
        cross_attention_dim=2 * WIDTH, attention_head_dim=2, norm_num_groups=4, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    return d.StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=_clip_text(CLIPTextModel), text_encoder_2=_clip_text(CLIPTextModelWithProjection),
        tokenizer=load_tokenizer(), tokenizer_2=load_tokenizer(), unet=unet.eval(),
        scheduler=d.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )  # fmt: skip


def _sd3() -> Any:
    transformer = d.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    )  # fmt: skip
    return d.StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=d.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip_text(CLIPTextModelWithProjection, 16), tokenizer=load_tokenizer(),
        text_encoder_2=_clip_text(CLIPTextModelWithProjection, 16), tokenizer_2=load_tokenizer(),
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def _flux() -> Any:
    transformer = d.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return d.FluxPipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(), transformer=transformer.eval(),
        vae=_vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip_text(CLIPTextModel), tokenizer=load_tokenizer(), text_encoder_2=_t5(), tokenizer_2=_words(),
    )  # fmt: skip


def _pixart(kind: type) -> Any:
    transformer = d.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=16, num_attention_heads=3, caption_channels=WIDTH,
        in_channels=4, cross_attention_dim=48, out_channels=8, attention_bias=True, use_additional_conditions=False,
    )  # fmt: skip
    return kind(
        transformer=transformer.eval(), vae=_vae(4), text_encoder=_t5(), tokenizer=_words(),
        scheduler=d.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def _sana() -> Any:
    transformer = d.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
        sample_size=16,
    )  # fmt: skip
    blocks: Any = ("ResBlock", "EfficientViTBlock")
    vae = d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41,
    )  # fmt: skip
    text = Gemma2Config(
        vocab_size=9, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    return d.SanaPipeline(
        tokenizer=_words(), text_encoder=Gemma2Model(text).eval(), vae=vae.eval(), transformer=transformer.eval(),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def _lcm() -> Any:
    plain = tiny_pipeline(prediction="epsilon")
    unet = d.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, down_block_types=_DOWN, up_block_types=_UP,
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4, time_cond_proj_dim=16,
    )  # fmt: skip
    return d.LatentConsistencyModelPipeline(
        vae=plain.vae, text_encoder=plain.text_encoder, tokenizer=plain.tokenizer, unet=unet.eval(),
        scheduler=d.LCMScheduler(**{**NOISE_SCHEDULE, "prediction_type": "epsilon"}), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


TINY: dict[str, Callable[[], Any]] = {
    "StableDiffusionPipeline": tiny_pipeline,
    "StableDiffusionXLPipeline": _sdxl,
    "StableDiffusion3Pipeline": _sd3,
    "FluxPipeline": _flux,
    "PixArtAlphaPipeline": lambda: _pixart(d.PixArtAlphaPipeline),
    "PixArtSigmaPipeline": lambda: _pixart(d.PixArtSigmaPipeline),
    "SanaPipeline": _sana,
    "LatentConsistencyModelPipeline": _lcm,
}


def build(kind: str) -> Any:
    """A pipeline with the same random weights every time, none of them zero."""
    torch.manual_seed(0)
    pipeline = TINY[kind]()
    for name in ("unet", "transformer"):
        part = getattr(pipeline, name, None)
        for value in part.parameters() if part is not None else ():
            if not value.any():  # what is zero at the start of training would hide what comes before it
                torch.nn.init.normal_(value, std=0.1)
    return pipeline
