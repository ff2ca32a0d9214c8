"""CLIP and SigLIP folders of transformers: the same features as transformers' own model, from the same files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F

from raydapt.data.decode import decode_image
from raydapt.errors import UserError
from raydapt.models.clip import Clip, clip_identity, load_clip
from raydapt.models.prompts import VisualPrompt
from raydapt.models.vision_tower import extra_tokens
from tests.data.images import encode

transformers = pytest.importorskip("transformers")
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
         "patch_size": 8}  # fmt: skip
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
NAMES, TEMPLATES = ("red cat", "dog", "old oak tree"), ("a photo of a {}", "{} of old")


def words_tokenizer(length: int) -> transformers.PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "red", "cat", "dog", "old", "oak", "tree"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.numel() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()


def clip_folder(folder: Path, act: str = "quick_gelu", **text: int) -> torch.nn.Module:
    own = TEXT | {"vocab_size": 49408, "max_position_embeddings": 20, "hidden_act": act, "eos_token_id": 49407} | text
    config = transformers.CLIPConfig(text_config=own, vision_config=IMAGE | {"hidden_act": act}, projection_dim=16)
    model = randomised(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return model


def siglip_folder(folder: Path) -> torch.nn.Module:
    own = TEXT | {"vocab_size": 12, "max_position_embeddings": 8, "projection_size": 32}
    model = randomised(transformers.SiglipModel(transformers.SiglipConfig(text_config=own, vision_config=IMAGE)))
    model.save_pretrained(folder)
    words_tokenizer(8).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def features(model: torch.nn.Module, clip: Clip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of three noisy pictures: transformers' own, ours, and the pixels."""
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    pixel_B3SS = torch.stack([
        torch.from_numpy(decode_image(encode(picture), clip.image_spec, max_pixels=10**6, max_bytes=10**6))
        for picture in pictures])  # fmt: skip
    processor = transformers.AutoImageProcessor.from_pretrained(clip.name, backend="pil")
    taken = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.allclose(taken, clip.normalise_pixels(pixel_B3SS), atol=1e-5)
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=taken)
    return _vectors(theirs), clip.encode_image(pixel_B3SS), pixel_B3SS


def _vectors(found: object) -> torch.Tensor:
    return F.normalize(found if isinstance(found, torch.Tensor) else found.pooler_output, dim=-1)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip(tmp_path: Path, act: str) -> None:
    model = clip_folder(tmp_path, act)
    clip = load_clip(str(tmp_path))
    theirs, ours, pixel_B3SS = features(model, clip)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    texts = ["a photo of a red cat", "old", "a b c d e f g h i j k l m n o p q r s t u v"]
    token_TL = clip.tokenizer(texts)
    with torch.no_grad():
        found = _vectors(model.get_text_features(input_ids=token_TL, attention_mask=torch.ones_like(token_TL)))
    torch.testing.assert_close(clip.encode_text(texts), found, rtol=0, atol=2e-5)
    prompt = VisualPrompt(clip, n_tokens=4, seed=0)
    assert prompt(pixel_B3SS).shape == ours.shape


def test_clip_whose_end_of_text_is_not_the_largest_token(tmp_path: Path) -> None:
    model = clip_folder(tmp_path, vocab_size=12, eos_token_id=1)
    words_tokenizer(20).save_pretrained(tmp_path)
    clip = load_clip(str(tmp_path))
    token_TL = clip.tokenizer(["a photo of a red cat", "old tree"])
    assert int(token_TL.max()) > 1
    with torch.no_grad():
        found = _vectors(model.get_text_features(input_ids=token_TL, attention_mask=torch.ones_like(token_TL)))
    torch.testing.assert_close(clip.encode_text(["a photo of a red cat", "old tree"]), found, rtol=0, atol=2e-5)


def test_siglip(tmp_path: Path) -> None:
    model = siglip_folder(tmp_path)
    clip = load_clip(str(tmp_path))
    assert clip.image_spec.resize_mode == "squash"
    theirs, ours, pixel_B3SS = features(model, clip)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    texts = [template.replace("{}", name) for name in NAMES for template in TEMPLATES]
    token_TL = clip.tokenizer(texts)
    assert token_TL.shape == (6, 8)
    with torch.no_grad():
        found = _vectors(model.get_text_features(input_ids=token_TL))
    torch.testing.assert_close(clip.encode_text(texts), found, rtol=0, atol=2e-5)
    with extra_tokens(clip.model.visual, torch.ones(3, 32)):
        assert not torch.allclose(clip.encode_image(pixel_B3SS), ours)


def test_shards_and_pickles_are_the_same_weights(tmp_path: Path) -> None:
    model = siglip_folder(tmp_path / "a")
    whole = load_clip(str(tmp_path / "a"))
    siglip_folder(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert (tmp_path / "b" / "model.safetensors.index.json").is_file()
    siglip_folder(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "c" / "pytorch_model.bin")
    for folder in "bc":
        other = load_clip(str(tmp_path / folder))
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name])


def test_identity_is_that_of_weights_configuration_and_tokenizer(tmp_path: Path) -> None:
    siglip_folder(tmp_path)
    before = clip_identity(str(tmp_path))
    (tmp_path / "README.md").write_text("a card")
    assert clip_identity(str(tmp_path)) == before
    for name in ("preprocessor_config.json", "tokenizer.json", "config.json"):
        was = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(was + b" ")
        assert clip_identity(str(tmp_path)) != before
        (tmp_path / name).write_bytes(was)


def test_what_cannot_work_is_one_sentence(tmp_path: Path) -> None:
    siglip_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            load_clip(str(tmp_path))
        assert "\n" not in str(caught.value)

    for kind, words in (("siglip2", "no fixed size"), ("blip", "type 'blip'"), (None, "neither open_clip_config")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        refused(words)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_config": IMAGE | {"hidden_size": 64}}))
    refused("is no siglip model that fits its weights")
    (tmp_path / "config.json").write_text(json.dumps(config))
    was = (tmp_path / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").write_text(was.replace("32", "64"))
    refused("resizes images to 64 px")
    (tmp_path / "preprocessor_config.json").write_text(was)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    refused("no whole .safetensors file")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused("git lfs pull")
    (tmp_path / "model.safetensors").unlink()
    refused("has neither model.safetensors")
