"""The miniature captioner: a LLaVA of transformers' own classes, its tokenizer and processor, and its folder on disk.

The image tower is the miniature CLIP's, read at twice its size: its 8 px patches become 16 px patches that first
average 2 x 2 pixels, so an image of 64 px gives the very states that the CLIP has of the same image at 32 px.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from pretraining.clip_model import CONFIG_FILE, MEAN, STD, WEIGHTS_FILE
from pretraining.clip_tokenizer import as_transformers, train_tokenizer

MINI = Path(__file__).parents[1] / "raydapt" / "models" / "mini" / "captioner"
CLIP_FOLDER = Path(__file__).parents[1] / "raydapt" / "models" / "mini" / "clip"
IMAGE_TOKEN = "<image>"
LLAVA_WEIGHTS_FILE = "model.safetensors"
SAVED_PREFIXES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""The names that published LLaVA checkpoints use and vLLM reads; transformers 5 reads them but does not write them."""
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""That of LLaVA 1.5, with the start of text in it: the tokenizer itself adds nothing, so no path doubles it."""


@dataclass(frozen=True, kw_only=True)
class CaptionerShape:
    """The size of every part."""

    image_px: int = 64
    patch_px: int = 16
    vision_width: int = 128
    vision_layers: int = 5
    vision_heads: int = 4
    text_width: int = 192
    text_layers: int = 2
    text_heads: int = 6
    text_hidden: int = 384
    context_length: int = 256

    @property
    def image_tokens(self) -> int:
        """States of an image that the language model reads: one per patch, and the class token."""
        return (self.image_px // self.patch_px) ** 2 + 1


def build_tokenizer(texts: Iterable[str], *, vocabulary_size: int, context_length: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows the words of ``texts``, with the image's placeholder as one token.

    Args:
        texts: Prompts and answers.
        vocabulary_size: Upper bound of the number of ids without the placeholder.
        context_length: Tokens of a conversation, those of the image included.
    """
    plain = train_tokenizer(texts, vocabulary_size=vocabulary_size)
    plain.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    wrapped = as_transformers(plain, context_length=context_length)
    wrapped.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    wrapped.padding_side = "left"  # generation goes on at the right
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_processor(tokenizer: PreTrainedTokenizerFast, shape: CaptionerShape) -> LlavaProcessor:
    """What turns images and a conversation into tensors: shorter side to the model's size, then a centre crop."""
    side = {"height": shape.image_px, "width": shape.image_px}
    images: Any = CLIPImageProcessor
    processor: Any = LlavaProcessor
    built: LlavaProcessor = processor(
        image_processor=images(
            size={"shortest_edge": shape.image_px}, crop_size=side, image_mean=list(MEAN), image_std=list(STD)
        ),
        tokenizer=tokenizer,
        patch_size=shape.patch_px,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return built


def build_captioner(tokenizer: PreTrainedTokenizerFast, shape: CaptionerShape) -> LlavaForConditionalGeneration:
    """The untrained model; initialised from torch's global seed."""
    config_of: Any = LlamaConfig  # their keywords are not all typed
    whole_of: Any = LlavaConfig
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=4 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.image_px,
        patch_size=shape.patch_px,
        hidden_act="gelu",
        projection_dim=shape.vision_width,
    )
    text = config_of(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_width,
        intermediate_size=shape.text_hidden,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        num_key_value_heads=shape.text_heads,
        head_dim=shape.text_width // shape.text_heads,
        max_position_embeddings=shape.context_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    config = whole_of(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=shape.image_tokens,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = LlavaForConditionalGeneration(config)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    built: LlavaForConditionalGeneration = model
    return built


def clip_vision_weights(shape: CaptionerShape, folder: Path = CLIP_FOLDER) -> dict[str, Tensor]:
    """The miniature CLIP's image tower under the names of transformers' vision tower, for patches of ``shape``.

    Raises:
        ValueError: The two towers differ in more than the size of the patches.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]["vision_cfg"]
    weights = {name: tensor.float() for name, tensor in load_file(str(folder / WEIGHTS_FILE)).items()}
    scale, rest = divmod(shape.patch_px, config["patch_size"])
    same = (config["width"], config["layers"], scale * config["image_size"], 0)
    if same != (shape.vision_width, shape.vision_layers, shape.image_px, rest):
        raise ValueError(f"the CLIP's tower is {config}, the captioner's is {shape}")
    patches = weights["visual.conv1.weight"].repeat_interleave(scale, 2).repeat_interleave(scale, 3) / scale**2
    renamed = {
        "embeddings.class_embedding": weights["visual.class_embedding"],
        "embeddings.patch_embedding.weight": patches,
        "embeddings.position_embedding.weight": weights["visual.positional_embedding"],
    }
    for kind in ("weight", "bias"):
        renamed[f"pre_layrnorm.{kind}"] = weights[f"visual.ln_pre.{kind}"]
        renamed[f"post_layernorm.{kind}"] = weights[f"visual.ln_post.{kind}"]
        for layer in range(shape.vision_layers):
            theirs, ours = f"visual.transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            for part, rows in zip("qkv", weights[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                renamed[f"{ours}.self_attn.{part}_proj.{kind}"] = rows
            renamed[f"{ours}.self_attn.out_proj.{kind}"] = weights[f"{theirs}.attn.out_proj.{kind}"]
            for there, here in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                renamed[f"{ours}.{here}.{kind}"] = weights[f"{theirs}.{there}.{kind}"]
            for there, here in (("c_fc", "fc1"), ("c_proj", "fc2")):
                renamed[f"{ours}.mlp.{here}.{kind}"] = weights[f"{theirs}.mlp.{there}.{kind}"]
    return renamed


def saved_name(name: str) -> str:
    """The name of a weight in published LLaVA checkpoints."""
    for ours, theirs in SAVED_PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"the weight {name} belongs to no part of a LLaVA")


def export_captioner(
    model: LlavaForConditionalGeneration, weights: Mapping[str, Tensor], processor: LlavaProcessor, folder: Path
) -> None:
    """Writes a folder that transformers and vLLM load; each file is replaced in one step.

    Args:
        model: Gives the configuration.
        weights: Under the model's own names; stored in half precision, loaded in single precision.
        processor: With its tokenizer.
        folder: Made when it is missing; other files in it stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        temporary = Path(scratch)
        saver: Any = processor
        saver.save_pretrained(str(temporary))
        config = model.config.to_dict()
        config.update(architectures=["LlavaForConditionalGeneration"], dtype="float32")
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        generation: Any = model.generation_config
        generation.save_pretrained(str(temporary))
        halves = {saved_name(name): tensor.detach().half().contiguous() for name, tensor in weights.items()}
        save_file(halves, str(temporary / LLAVA_WEIGHTS_FILE), metadata={"format": "pt"})
        for file in sorted(temporary.iterdir()):
            file.chmod(0o644)
            file.replace(folder / file.name)


def conversation(prompt: str, answer: str | None = None) -> list[dict[str, Any]]:
    """One image, one question and, if given, the answer, as messages for a chat template."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    ]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def captioner_folder(name: str) -> str:
    """``mini`` as the embedded folder; a path or a name of the model hub as it is."""
    return str(MINI) if name == "mini" else name
