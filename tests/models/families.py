"""Shrunken random models of the kinds of towers that open_clip 3.3 has, in its classes, timm's and transformers'.

Each stands for the configurations of its family: the same classes and options, fewer and narrower layers.
"""

import string

import open_clip
import timm
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import M2M100Config, MT5Config, PreTrainedTokenizerFast, RobertaConfig, XLMRobertaConfig

from raydapt.data.decode import ImageSpec
from raydapt.models import lend_transformers
from raydapt.models.clip import Clip
from tests.models.tiny import SPEC, tokenizer

WIDTH, SIDE_PX, CONTEXT_LENGTH, EMBED_DIM = 32, 32, 40, 24
_VIT = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2, "img_size": SIDE_PX, "patch_size": 8}
_ENCODER = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_TIMM = {
    "vit_base_patch16_siglip": _VIT,
    "vit_base_mci": {"img_size": 64, "depth": 1},
    "vit_medium_patch16_gap": _VIT,
    "vit_pe_core": _VIT | {"ref_feat_shape": (4, 4)},
    "eva02_base": _VIT | {"ref_feat_shape": (4, 4)},
    "vit_relpos": _VIT,
    "vitamin_small": {"img_size": 64, "depth": 1},
    "convnext": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, WIDTH)},
    "fastvit": {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, WIDTH)},
    "swin": {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
}
_SIDES_PX = {"vitamin_small": 64, "vit_base_mci": 64, "swin": 64, "fastvit": 64, "convnext": 64}
FAMILIES = {
    "ViT (OpenAI, LAION, DataComp)": "ViT-B-32",
    "ViT, quick GELU (DFN, MetaCLIP)": "ViT-H-14-378-quickgelu",
    "CLIPA": "ViT-H-14-CLIPA-336",
    "MetaCLIP 2 worldwide": "ViT-bigG-14-worldwide",
    "SigLIP": "ViT-B-16-SigLIP",
    "SigLIP 2": "ViT-B-16-SigLIP2",
    "ViTamin": "ViTamin-S",
    "PE-Core": "PE-Core-T-16-384",
    "EVA-02": "EVA02-B-16",
    "ConvNeXt": "convnext_base",
    "ResNet": "RN50",
    "MobileCLIP, MobileCLIP 2 (S)": "MobileCLIP2-S0",
    "MobileCLIP-B": "MobileCLIP-B",
    "Swin": "swin_base_patch4_window7_224",
    "ViT with pooled patches (timm)": "vit_medium_patch16_gap_256",
    "ViT with relative positions (timm)": "vit_relpos_medium_patch16_cls_224",
    "CoCa": "coca_ViT-B-32",
    "RoBERTa text": "roberta-ViT-B-32",
    "XLM-RoBERTa text": "xlm-roberta-base-ViT-B-32",
    "NLLB text": "nllb-clip-base",
    "NLLB text, SigLIP images": "nllb-clip-base-siglip",
    "mT5 text": "mt5-base-ViT-B-32",
}
"""A name for people, and the configuration that is shrunken."""


def family_clip(architecture: str, folder) -> Clip:
    """A shrunken random model; `folder` is where a tokenizer of transformers may be written."""
    config = open_clip.get_model_config(architecture)
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    side_px = SIDE_PX
    encoder = text.pop("hf_model_name", None)
    tokens = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if "timm_model_name" in vision:
            side_px = next((side for name, side in _SIDES_PX.items() if vision["timm_model_name"].startswith(name)), 32)
            vision |= {"timm_model_pretrained": False, "image_size": side_px}
        elif isinstance(vision["layers"], list):
            vision |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
            side_px = 64
        else:
            vision |= {"layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8, "image_size": SIDE_PX}
        small = {"width": WIDTH, "heads": 2, "layers": 2, "vocab_size": 49408, "context_length": CONTEXT_LENGTH}
        plain = {key: value for key, value in text.items() if not key.startswith(("hf_", "tokenizer_"))}
        plain |= small | ({"eos_id": 49407} if "eos_id" in plain else {})
        with shrunken_timm():
            model = _model(config, vision, plain)
        if encoder:
            tokens = letters(folder)
            model.text = _encoder(encoder, len(tokens.tokenizer), text, _width(vision))
        for name, parameter in model.named_parameters():  # open_clip starts some at numbers that hide mistakes
            if "embed" in name and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
            if name.endswith("gamma"):  # the scale of a layer, 1e-6 at first
                torch.nn.init.ones_(parameter)
    spec = ImageSpec(size_px=side_px, resize_mode="shortest", interpolation="bicubic", mean=SPEC.mean, std=SPEC.std)
    embed_dim = int(model.encode_text(torch.as_tensor(tokens(["a"], context_length=CONTEXT_LENGTH))).shape[-1])
    return Clip(model, tokens, name=architecture, identity=architecture, image_spec=spec, embed_dim=embed_dim)


def _width(vision) -> int:
    """Of the features: that of the image tower where it has no projection."""
    return WIDTH if vision.get("timm_proj") in ("none", None) and "timm_model_name" in vision else EMBED_DIM


def _model(config, vision, text) -> torch.nn.Module:
    width = _width(vision)
    kinds = {"quick_gelu": config.get("quick_gelu", False)}
    if "multimodal_cfg" in config:
        multimodal = config["multimodal_cfg"] | {"width": WIDTH, "heads": 2, "layers": 1, "attn_pooler_heads": 2,
                                                 "context_length": CONTEXT_LENGTH, "vocab_size": 49408}  # fmt: skip
        vision = vision | {"attn_pooler_heads": 2}
        return open_clip.CoCa(width, multimodal, text, vision, **kinds)
    custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(width, vision, text, **kinds)


class shrunken_timm:  # noqa: N801 - a context
    """Within it, timm makes small models of the architectures that are asked for."""

    def __enter__(self):
        self._create = timm.create_model
        timm.create_model = self._small
        return self

    def __exit__(self, *_):
        timm.create_model = self._create

    def _small(self, name, **arguments):
        small = next((kwargs for prefix, kwargs in _TIMM.items() if name.startswith(prefix)), {})
        return self._create(name, **{**arguments, **small})


def _encoder(name, vocab_size, text, width):
    config = {"roberta-base": RobertaConfig, "xlm-roberta-base": XLMRobertaConfig}.get(name)
    if config is not None:
        made = config(vocab_size=vocab_size, max_position_embeddings=66, **_ENCODER)
    elif "nllb" in name:
        sides = ("encoder", "decoder")
        layers = {f"{side}_layers": 2 for side in sides} | {f"{side}_attention_heads": 2 for side in sides}
        made = M2M100Config(vocab_size=vocab_size, d_model=WIDTH, encoder_ffn_dim=48, decoder_ffn_dim=48,
                            max_position_embeddings=66, pad_token_id=1, **layers)  # fmt: skip
    else:
        made = MT5Config(vocab_size=vocab_size, d_model=WIDTH, d_kv=16, num_layers=2, num_heads=2, d_ff=48,
                         pad_token_id=1)  # fmt: skip
    lend_transformers()
    pooler = text.get("hf_pooler_type", "mean_pooler")
    encoder = HFTextEncoder("", width, config=made, pooler_type=pooler, proj_type="mlp")
    if made.is_encoder_decoder:
        encoder.transformer = encoder.transformer.encoder
    return encoder


def letters(folder) -> HFTokenizer:
    """A tokenizer of transformers that knows letters, with RoBERTa's special tokens."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for letter in string.printable:
        vocabulary.setdefault(letter, len(vocabulary))
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(str(folder))
    return HFTokenizer(str(folder), context_length=CONTEXT_LENGTH)
