"""Second encoders of each library, tiny and random, from folders: features are those of the library itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from torch.nn import functional as F

from raydapt.data.decode import ImageSpec, decode_image
from raydapt.errors import UserError
from raydapt.models.clip_names import MINI
from raydapt.models.frozen import shared_clip
from raydapt.models.vision_encoder import VisionEncoder, shared_vision
from raydapt.models.vision_names import vision_name

TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
BIT = {"img_size": 32}


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """A smooth picture of 60 x 47 px, so that resizing has no say."""
    grid = np.linspace(0, 1, 60 * 47 * 3).reshape(47, 60, 3)
    return Image.fromarray((127 + 120 * np.sin(6 * grid)).astype(np.uint8))


def encoded(model: VisionEncoder, image: Image.Image, folder: Path) -> Tensor:
    image.save(folder / "x.png")
    pixel_3SS = decode_image((folder / "x.png").read_bytes(), model.image_spec, max_pixels=10**8, max_bytes=10**8)
    return model.encode_image(torch.from_numpy(pixel_3SS)[None])


def timm_folder(folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TIMM).eval()
    prepared = {"input_size": [3, 32, 32], "crop_pct": 0.8, "crop_mode": "center", "interpolation": "bicubic",
                "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "num_classes": 3, "first_conv": "patch_embed.proj",
                "classifier": "head"}  # fmt: skip
    config = {"architecture": "vit_tiny_patch16_224", "model_args": TIMM, "num_classes": 3, "pretrained_cfg": prepared}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    model.pretrained_cfg = {**model.pretrained_cfg, **prepared}
    return model


def test_timm_from_a_folder(tmp_path: Path, image: Image.Image) -> None:
    plain = timm_folder(tmp_path / "m")
    found = shared_vision(str(tmp_path / "m"))
    assert isinstance(found, VisionEncoder)
    transform = create_transform(**resolve_model_data_config(plain))
    with torch.inference_mode():
        expected = F.normalize(plain.forward_head(plain.forward_features(transform(image)[None]), pre_logits=True))
        torch.testing.assert_close(encoded(found, image, tmp_path), expected, atol=2e-3, rtol=0)
    assert (found.image_spec.size_px, found.embed_dim) == (40, 16)
    assert found.image_spec.mean == (0.4, 0.5, 0.6)


def test_timm_from_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", pretrained=False).eval()
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    found = shared_vision(f"test_vit/{tmp_path}/w.safetensors")
    side = plain.pretrained_cfg["input_size"][-1]
    image_13SS = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    stored = F.pad(image_13SS, ((found.image_spec.size_px - side) // 2,) * 4)
    mean, std = (torch.tensor(found.image_spec.mean), torch.tensor(found.image_spec.std))
    normal = (image_13SS / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        expected = F.normalize(plain.forward_head(plain.forward_features(normal), pre_logits=True))
    torch.testing.assert_close(found.encode_image(stored), expected, atol=1e-5, rtol=1e-4)
    other = vision_name(f"test_vit/{tmp_path}/w.safetensors").identity
    save_file({name: one + 1 for name, one in plain.state_dict().items()}, tmp_path / "v.safetensors")
    assert vision_name(f"test_vit/{tmp_path}/v.safetensors").identity != other


def transformers_model(kind: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    if kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**small))
    elif kind == "siglip":
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.SiglipConfig(text_config={**text, "vocab_size": 50}, vision_config=small)
        model = transformers.SiglipModel(config)
    else:
        config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
        model = transformers.ConvNextModel(config)
    model.eval().save_pretrained(folder)
    squashed = kind == "siglip"
    size = {"height": 28, "width": 28} if squashed else {"shortest_edge": 36}
    settings = {"image_processor_type": "ViTImageProcessor" if squashed else "BitImageProcessor", "size": size,
                "do_center_crop": not squashed, "crop_size": {"height": 28, "width": 28}, "resample": 3,
                "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "convnext"])
def test_transformers_from_a_folder(tmp_path: Path, image: Image.Image, kind: str) -> None:
    plain = transformers_model(kind, tmp_path)
    found = shared_vision(str(tmp_path))
    squashed = kind == "siglip"
    assert found.image_spec == ImageSpec(
        size_px=28 if squashed else 36,
        resize_mode="squash" if squashed else "shortest",
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
    )
    image.save(tmp_path / "x.png")
    pixel_3RR = decode_image((tmp_path / "x.png").read_bytes(), found.image_spec, max_pixels=10**8, max_bytes=10**8)
    start = 0 if squashed else 4
    middle = torch.from_numpy(pixel_3RR[:, start : start + 28, start : start + 28].copy())[None] / 255
    normal = (middle - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.inference_mode():
        if kind == "siglip":
            expected = plain.vision_model(pixel_values=normal).pooler_output
        elif kind == "dinov2":
            expected = plain(pixel_values=normal).last_hidden_state[:, 0]
        else:
            expected = plain(pixel_values=normal).last_hidden_state.mean(dim=(2, 3))
    torch.testing.assert_close(encoded(found, image, tmp_path), F.normalize(expected), atol=1e-4, rtol=1e-3)


def test_open_clip_counts_by_its_images() -> None:
    assert shared_vision("mini") is shared_clip("mini")
    assert shared_vision(str(MINI)).embed_dim == 128


def test_names_find_their_library() -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    libraries = [vision_name(one).library for one in (name, f"timm/{name}", "ViT-B-32/openai")]
    assert libraries == ["timm", "timm", "open_clip"]
    assert vision_name(name).identity == vision_name(f"timm/{name}").identity


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing_like_it", r"model\.second='nothing_like_it' is no model and no file: give a model of timm"),
        ("./nowhere", r"model\.second='\./nowhere' is no model and no file"),
        ("some-org/some-model", r"is not in the model cache and cannot be fetched: .*hf download some-org/some-model"),
        ("ViT-B-32/no-such-tag", r"model\.second='ViT-B-32/no-such-tag': 'no-such-tag' is neither a file nor a tag"),
        ("vit_small_patch14_dinov2.lvd142m", r"cannot be loaded by timm .*hf download ORG/NAME --local-dir FOLDER"),
    ],
)
def test_what_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, sentence: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=sentence) as caught:
        shared_vision(name)
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has neither open_clip_config\.json nor a config\.json of timm"):
        vision_name(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        vision_name(str(tmp_path))
