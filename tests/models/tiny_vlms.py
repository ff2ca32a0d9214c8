"""Vision-language models of a few thousand random weights, in the layouts that transformers and vLLM read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False}  # fmt: skip
_N_LETTERS = 94
"""The first tokens: what ASCII prints, space aside."""
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(*special: str, **named: str) -> Any:
    """Bytes, and the tokens that a family's processor looks for."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    own = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096,
        extra_special_tokens=named or None,
    )  # fmt: skip
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *special]})
    return own


def _text(tokenizer: Any) -> dict[str, Any]:
    ends = _ids(tokenizer, bos_token_id="<|im_start|>", eos_token_id="<|im_end|>", pad_token_id="<|endoftext|>")
    return _TEXT | {"vocab_size": len(tokenizer)} | ends


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _qwen(version: str) -> tuple[Any, Any]:
    tokenizer = _tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = _ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
               vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")  # fmt: skip
    text = _text(tokenizer)
    image: Any = t.Qwen2VLImageProcessor(
        patch_size=14 if version == "2.5" else 16, min_pixels=56 * 56, max_pixels=112 * 112
    )
    chat = _CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    if version == "2.5":
        rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
                  "fullatt_block_indexes": [0]}  # fmt: skip
        config = t.Qwen2_5_VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **ids)
        processor = t.Qwen2_5_VLProcessor(image, tokenizer, t.Qwen2VLVideoProcessor(), chat_template=chat)
        return t.Qwen2_5_VLForConditionalGeneration(config), processor
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 10000.0}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 64}  # fmt: skip
    # vLLM 0.29.0 asks the language model's part for its architecture on a CPU, which published files do not state
    text |= {"head_dim": 32, "rope_parameters": rope, "architectures": ["Qwen3ForCausalLM"]}
    config = t.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    processor = t.Qwen3VLProcessor(image, tokenizer, t.Qwen3VLVideoProcessor(), chat_template=chat)
    return t.Qwen3VLForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    tokenizer = _tokenizer(**named)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": [56, 56], "patch_size": [14, 14]}  # fmt: skip
    text = {"model_type": "qwen2"} | _text(tokenizer)
    config = t.InternVLConfig(vision_config=vision, text_config=text, downsample_ratio=0.5, tie_word_embeddings=False,
                              **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"))  # fmt: skip
    image: Any = t.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=2)
    processor = t.InternVLProcessor(image, tokenizer, t.InternVLVideoProcessor(), image_seq_length=4,
                                    chat_template=_CHAT.replace("IMAGE", "<IMG_CONTEXT>\n"))  # fmt: skip
    return t.InternVLForConditionalGeneration(config), processor


def _smolvlm() -> tuple[Any, Any]:
    places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    named = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
             "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}  # fmt: skip
    tokenizer = _tokenizer(*places, **named)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 56, "patch_size": 14}  # fmt: skip
    text = {"model_type": "llama"} | _text(tokenizer)
    ids = _ids(tokenizer, image_token_id="<image>")
    config = t.SmolVLMConfig(
        vision_config=vision, text_config=text, scale_factor=2, pad_token_id=text["pad_token_id"], **ids
    )
    image: Any = t.SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    video: Any = t.SmolVLMVideoProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = t.SmolVLMProcessor(
        image, tokenizer, video, image_seq_len=4, chat_template=_CHAT.replace("IMAGE", "<image>")
    )
    return t.SmolVLMForConditionalGeneration(config), processor


def _llava_next() -> tuple[Any, Any]:
    tokenizer = _tokenizer(image_token="<image>")
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "projection_dim": 32}  # fmt: skip
    text = {"model_type": "llama"} | _text(tokenizer)
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = t.LlavaNextConfig(vision_config=vision, text_config=text, image_grid_pinpoints=pinpoints,
                               image_seq_length=16, tie_word_embeddings=False,
                               image_token_index=tokenizer.convert_tokens_to_ids("<image>"))  # fmt: skip
    image: Any = t.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
    )
    processor = t.LlavaNextProcessor(
        image, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_CHAT.replace("IMAGE", "<image>\n"),
    )  # fmt: skip
    return t.LlavaNextForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer("\n", "\n\n", "\n\n\n", "\n\n\n\n", **named)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 56, "patch_size": 14}  # fmt: skip
    text = _text(tokenizer) | {"head_dim": 32, "sliding_window": 512, "layer_types": ["full_attention"]}
    config = t.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, tie_word_embeddings=False,
        **_ids(tokenizer, boi_token_index="<start_of_image>", eoi_token_index="<end_of_image>",
               image_token_index="<image_soft_token>"),
    )  # fmt: skip
    image: Any = t.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = t.Gemma3Processor(
        image, tokenizer, image_seq_length=4, chat_template=_CHAT.replace("IMAGE", "<start_of_image>")
    )
    return t.Gemma3ForConditionalGeneration(config), processor


TINY: dict[str, Callable[[], tuple[Any, Any]]] = {
    "Qwen2.5-VL": lambda: _qwen("2.5"),
    "Qwen3-VL": lambda: _qwen("3"),
    "InternVL": _internvl,
    "LLaVA-NeXT": _llava_next,
    "Gemma 3": _gemma3,
    "SmolVLM": _smolvlm,
}


_PUBLISHED_OLDER = ("LLaVA-NeXT", "Gemma 3")
"""Their published weights name the vision tower as transformers 4 did, which is what vLLM 0.29 reads."""


def _published_name(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def save_vlm(kind: str, folder: Path) -> str:
    """Writes a model of a family as a folder, and returns the folder's name."""
    torch.manual_seed(0)
    model, processor = TINY[kind]()
    with torch.no_grad():
        model.get_output_embeddings().weight[_N_LETTERS:] = 0.0  # what it says is text: no space, no special token
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind in _PUBLISHED_OLDER:
        path = folder / "model.safetensors"
        tensors = {_published_name(name): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    return str(folder)
