"""CLIP and SigLIP models in transformers' layout (``config.json``, ``model.safetensors``) as models of open_clip.

The weights are the same numbers under other names. As models of open_clip they can do all that those can: prompts,
LayerNorms, LoRA, export.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor, nn

from raydapt.errors import UserError
from raydapt.models import lend_transformers, passed_over
from raydapt.models.weight_files import read_weights

CONFIG_FILE = "config.json"
_KINDS = ("clip", "siglip")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
_OPENAI_MEAN, _OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_CLIP_VOCABULARY = 49408
_LEGACY_EOS = 2
"""What early configurations call the end of text, and nobody reads: the end is then the largest token."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with what goes before it."""

    model: nn.Module
    tokenizer: Any
    preprocess: dict[str, Any]
    """As open_clip's ``preprocess_cfg``."""
    embed_dim: int


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder holds a CLIP or SigLIP model of transformers."""
    return (folder / CONFIG_FILE).is_file() and _read_json(folder / CONFIG_FILE).get("model_type") in _KINDS


def model_type(folder: Path) -> str | None:
    """What transformers calls the model in a folder; None without a configuration."""
    found = _read_json(folder / CONFIG_FILE).get("model_type") if (folder / CONFIG_FILE).is_file() else None
    return None if found is None else str(found)


def load_transformers_clip(folder: Path, *, setting: str) -> Loaded:
    """Loads a model of transformers as one of open_clip.

    Raises:
        UserError: If its configuration or weights are not those of a CLIP or SigLIP model.
    """
    config = _read_json(folder / CONFIG_FILE)
    build = _clip if config["model_type"] == "clip" else _siglip
    weights: dict[str, Tensor] = {}
    for file in _weights_files(folder, setting):
        weights |= read_weights(file, setting=setting)
    try:
        model, context_length, embed_dim = build(config, weights)
    except (KeyError, RuntimeError, ValueError, TypeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{setting}: {str(folder)!r} is no {config['model_type']} model that fits its weights ({reason})."
        ) from error
    return Loaded(
        model=model,
        tokenizer=_tokenizer(folder, config, context_length),
        preprocess=_preprocess(folder, config, setting),
        embed_dim=embed_dim,
    )


def _clip(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[nn.Module, int, int]:
    """open_clip's CLIP; sizes that a configuration leaves out are transformers' defaults, those of ViT-B-32."""
    image = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
             "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu"}  # fmt: skip
    image |= config.get("vision_config", {})
    text = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
            "vocab_size": _CLIP_VOCABULARY, "max_position_embeddings": 77, "eos_token_id": _LEGACY_EOS,
            "hidden_act": "quick_gelu"} | config.get("text_config", {})  # fmt: skip
    if image["hidden_act"] != text["hidden_act"] or image["hidden_act"] not in ("gelu", "quick_gelu"):
        raise ValueError(f"activations {image['hidden_act']} and {text['hidden_act']}")
    embed_dim = int(config.get("projection_dim", 512))
    at_largest = text["eos_token_id"] in (_LEGACY_EOS, text["vocab_size"] - 1)
    model = open_clip.CLIP(
        embed_dim,
        _vision_cfg(image),
        _text_cfg(text) | ({} if at_largest else {"pool_type": "eos", "eos_id": text["eos_token_id"]}),
        quick_gelu=image["hidden_act"] == "quick_gelu",
    )
    state = _blocks(weights, "vision_model.encoder.layers.", "visual.transformer.resblocks.", image, _open_clip_block)
    state |= _blocks(weights, "text_model.encoder.layers.", "transformer.resblocks.", text, _open_clip_block)
    for there, here in {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
        "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
        "vision_model.post_layernorm.weight": "visual.ln_post.weight",
        "vision_model.post_layernorm.bias": "visual.ln_post.bias",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
        "logit_scale": "logit_scale",
    }.items():
        state[here] = weights[there]
    state["visual.proj"] = weights["visual_projection.weight"].T
    state["text_projection"] = weights["text_projection.weight"].T
    _put(model, state)
    return model, int(text["max_position_embeddings"]), embed_dim


def _siglip(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[nn.Module, int, int]:
    """open_clip's SigLIP: timm's image tower, a text tower that sees both ways and is read at its last token."""
    common = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
              "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}  # fmt: skip
    image = common | {"image_size": 224, "patch_size": 16} | config.get("vision_config", {})
    text = common | {"vocab_size": 32000, "max_position_embeddings": 64} | config.get("text_config", {})
    width = int(image["hidden_size"])
    text_cfg = _text_cfg(text) | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    text_cfg |= {"norm_kwargs": {"eps": text["layer_norm_eps"]}, "act_kwargs": {"approximate": "tanh"}}
    size = {"image_size": int(image["image_size"]), "patch_size": int(image["patch_size"])}
    small = {"layers": 1, "width": 64, "head_width": 64}  # replaced below
    model = open_clip.CustomTextCLIP(width, size | small, text_cfg, init_logit_bias=-10.0)
    model.visual = _siglip_image_tower(image, size)
    state = _blocks(weights, "vision_model.encoder.layers.", "visual.trunk.blocks.", image, _timm_block)
    state |= _blocks(weights, "text_model.encoder.layers.", "text.transformer.resblocks.", text, _open_clip_block)
    for there, here in {
        "vision_model.embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
        "vision_model.post_layernorm": "visual.trunk.norm",
        "vision_model.head.attention.out_proj": "visual.trunk.attn_pool.proj",
        "vision_model.head.layernorm": "visual.trunk.attn_pool.norm",
        "vision_model.head.mlp.fc1": "visual.trunk.attn_pool.mlp.fc1",
        "vision_model.head.mlp.fc2": "visual.trunk.attn_pool.mlp.fc2",
        "text_model.final_layer_norm": "text.ln_final",
        "text_model.head": "text.text_projection",
    }.items():
        for end in ("weight", "bias"):
            state[f"{here}.{end}"] = weights[f"{there}.{end}"]
    state["visual.trunk.pos_embed"] = weights["vision_model.embeddings.position_embedding.weight"][None]
    state["visual.trunk.attn_pool.latent"] = weights["vision_model.head.probe"]
    for end in ("weight", "bias"):
        joint = weights[f"vision_model.head.attention.in_proj_{end}"]
        state[f"visual.trunk.attn_pool.q.{end}"], state[f"visual.trunk.attn_pool.kv.{end}"] = (
            joint[:width],
            joint[width:],
        )
    state["text.token_embedding.weight"] = weights["text_model.embeddings.token_embedding.weight"]
    state["text.positional_embedding"] = weights["text_model.embeddings.position_embedding.weight"]
    state |= {name: weights[name] for name in ("logit_scale", "logit_bias")}
    _put(model, state)
    return model, int(text["max_position_embeddings"]), width


def _siglip_image_tower(image: dict[str, Any], size: dict[str, int]) -> nn.Module:
    from open_clip.timm_model import TimmModel

    visual: nn.Module = TimmModel("vit_tiny_patch16_224", 0, image_size=size["image_size"], pool="token", proj="none")
    visual.trunk = timm.models.VisionTransformer(
        img_size=size["image_size"],
        patch_size=size["patch_size"],
        embed_dim=image["hidden_size"],
        depth=image["num_hidden_layers"],
        num_heads=image["num_attention_heads"],
        mlp_ratio=image["intermediate_size"] / image["hidden_size"],
        norm_layer=partial(nn.LayerNorm, eps=image["layer_norm_eps"]),
        act_layer="gelu_tanh" if image["hidden_act"] == "gelu_pytorch_tanh" else "gelu",
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    return visual


def _vision_cfg(image: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": int(image["image_size"]),
        "patch_size": int(image["patch_size"]),
        "width": int(image["hidden_size"]),
        "layers": int(image["num_hidden_layers"]),
        "head_width": int(image["hidden_size"]) // int(image["num_attention_heads"]),
        "mlp_ratio": image["intermediate_size"] / image["hidden_size"],
    }


def _text_cfg(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "context_length": int(text["max_position_embeddings"]),
        "vocab_size": int(text["vocab_size"]),
        "width": int(text["hidden_size"]),
        "heads": int(text["num_attention_heads"]),
        "layers": int(text["num_hidden_layers"]),
        "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
    }


Block = Callable[[Callable[[str], Tensor]], dict[str, Tensor]]


def _blocks(
    weights: dict[str, Tensor], there: str, here: str, sizes: dict[str, Any], block: Block
) -> dict[str, Tensor]:
    """All layers of a tower under their new names."""
    state: dict[str, Tensor] = {}
    for layer in range(int(sizes["num_hidden_layers"])):
        of_layer = block(lambda name, at=layer: weights[f"{there}{at}.{name}"])  # type: ignore[misc]
        state |= {f"{here}{layer}.{name}": value for name, value in of_layer.items()}
    return state


def _joint(of: Callable[[str], Tensor], end: str) -> Tensor:
    return torch.cat([of(f"self_attn.{part}_proj.{end}") for part in "qkv"])


def _open_clip_block(of: Callable[[str], Tensor]) -> dict[str, Tensor]:
    state = {f"attn.in_proj_{end}": _joint(of, end) for end in ("weight", "bias")}
    names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
             "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    return state | {
        f"{here}.{end}": of(f"{there}.{end}") for here, there in names.items() for end in ("weight", "bias")
    }


def _timm_block(of: Callable[[str], Tensor]) -> dict[str, Tensor]:
    state = {f"attn.qkv.{end}": _joint(of, end) for end in ("weight", "bias")}
    names = {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2"}  # fmt: skip
    return state | {
        f"{here}.{end}": of(f"{there}.{end}") for here, there in names.items() for end in ("weight", "bias")
    }


def _put(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    shaped = {name: value.reshape(own[name].shape) if value.numel() == 1 else value for name, value in state.items()}
    model.load_state_dict(shaped)


def _tokenizer(folder: Path, config: dict[str, Any], context_length: int) -> Any:
    """CLIP's own tokenizer where the vocabulary is CLIP's, else the folder's."""
    vocabulary = config.get("text_config", {}).get("vocab_size", _CLIP_VOCABULARY)
    if config["model_type"] == "clip" and vocabulary == _CLIP_VOCABULARY:
        return open_clip.SimpleTokenizer(context_length=context_length)
    from open_clip.tokenizer import HFTokenizer

    lend_transformers()
    clean = "canonicalize" if config["model_type"] == "siglip" else "whitespace"
    with passed_over("sklearn"):
        return HFTokenizer(str(folder), context_length=context_length, clean=clean)


def _preprocess(folder: Path, config: dict[str, Any], setting: str) -> dict[str, Any]:
    """How an image becomes pixels, from ``preprocessor_config.json``, else as transformers' own default has it."""
    found = _read_json(folder / "preprocessor_config.json")
    siglip = config["model_type"] == "siglip"
    side = int(config.get("vision_config", {}).get("image_size", 224))
    crops = bool(found.get("do_center_crop", not siglip))
    resized, cropped = _side(found.get("size", side)), _side(found.get("crop_size", side))
    if (cropped if crops else resized) != side or (crops and resized != side):
        raise UserError(
            f"{setting}: {str(folder)!r} resizes images to {resized} px and crops {cropped} px for a model of {side} "
            "px, which is not done here: correct size and crop_size in preprocessor_config.json."
        )
    return {
        "size": side,
        "mean": found.get("image_mean", [0.5] * 3 if siglip else _OPENAI_MEAN),
        "std": found.get("image_std", [0.5] * 3 if siglip else _OPENAI_STD),
        "interpolation": _RESAMPLE.get(found.get("resample", 3), "bicubic"),
        "resize_mode": "shortest" if crops else "squash",
    }


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size.get("shortest_edge") or size["height"])


def _weights_files(folder: Path, setting: str) -> list[Path]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return [
                folder / part for part in sorted(set(_read_json(folder / f"{name}.index.json")["weight_map"].values()))
            ]
    raise UserError(f"{setting}: {str(folder)!r} has neither {_WEIGHTS[0]} nor {_WEIGHTS[1]}: give a whole folder.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
