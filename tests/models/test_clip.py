import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from raydapt.errors import UserError
from raydapt.models.clip import Clip, OnClip, clip_identity, load_clip
from raydapt.models.clip_names import MINI, family_arguments
from tests.models.tiny import SIDE_PX, SPEC, TEXT, VISION, pixels, tiny_clip, tiny_model


@pytest.fixture
def folder(tmp_path):
    """A model folder in open_clip's layout."""
    from safetensors.torch import save_file

    path = tmp_path / "model"
    path.mkdir()
    preprocess = {"mean": list(SPEC.mean), "std": list(SPEC.std), "interpolation": "bicubic"}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": preprocess}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {k: v.contiguous() for k, v in tiny_model(seed=3).state_dict().items()}, path / "open_clip_model.safetensors"
    )
    return path


def test_image_features_equal_those_of_open_clips_own_transform():
    clip = tiny_clip()
    pixel_B3SS = pixels(3)
    transform = open_clip.image_transform(SIDE_PX, is_train=False, mean=SPEC.mean, std=SPEC.std)
    images = [Image.fromarray(np.ascontiguousarray(p.permute(1, 2, 0).numpy())) for p in pixel_B3SS]
    expected_BD = clip.model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
    actual_BD = clip.encode_image(pixel_B3SS)
    assert actual_BD.dtype == torch.float32
    torch.testing.assert_close(actual_BD, expected_BD, rtol=0, atol=1e-6)


def test_class_embeddings_are_normalised_means_over_templates():
    clip = tiny_clip()
    names, templates = ["cat", "a/b {} <b>", "river 🦊"], ["a photo of a {}", "a drawing of {}, old", "{}"]
    expected = []
    for name in names:
        rows = []
        for template in templates:
            text = template.replace("{}", name, 1)
            rows.append(clip.model.encode_text(clip.tokenizer([text]), normalize=True)[0])
        expected.append(F.normalize(torch.stack(rows).mean(0), dim=0))
    actual_CD = clip.class_embeddings(names, templates)
    torch.testing.assert_close(actual_CD, torch.stack(expected), rtol=0, atol=1e-5)
    assert not actual_CD.requires_grad


def test_many_texts_go_through_in_chunks():
    clip = tiny_clip()
    texts = [f"number {i} " + "x " * (i % 7) for i in range(300)]
    few = torch.cat([clip.encode_text([text]) for text in texts[250:270]])
    torch.testing.assert_close(clip.encode_text(texts)[250:270], few, rtol=0, atol=1e-5)


def test_the_model_is_frozen_and_in_evaluation_mode():
    clip = tiny_clip()
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert clip.logit_scale == pytest.approx(1 / 0.07)


def test_the_logit_scale_is_at_most_100():
    model = tiny_model()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert Clip(model, tiny_clip().tokenizer, name="", identity="", image_spec=SPEC, embed_dim=24).logit_scale == 100


def test_a_module_on_a_clip_owns_none_of_it_but_moves_it():
    clip = tiny_clip()

    class Head(OnClip):
        def __init__(self):
            super().__init__(clip)
            self.weight = torch.nn.Parameter(torch.zeros(2))

    head = Head()
    assert list(head.state_dict()) == ["weight"]
    assert len(list(head.parameters())) == 1
    head.train()
    assert not clip.model.training
    head.double()
    assert {p.dtype for p in clip.parameters()} == {torch.float64}
    assert clip.device.type == "cpu"


def test_a_folder_loads_as_open_clip_saves_it(folder):
    clip = load_clip(str(folder))
    assert clip.image_spec == SPEC
    assert clip.embed_dim == 24
    torch.testing.assert_close(clip.encode_image(pixels(2)), tiny_clip(seed=3).encode_image(pixels(2)))
    assert clip.identity == clip_identity(str(folder))


def test_identity_follows_the_contents_of_a_folder_not_its_place(folder, tmp_path):
    before = clip_identity(str(folder))
    (folder / "README.md").write_text("a card")
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert clip_identity(str(moved)) == before
    weights = bytearray((moved / "open_clip_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "open_clip_model.safetensors").write_bytes(bytes(weights))
    assert clip_identity(str(moved)) != before
    assert clip_identity("ViT-B-32/openai") != clip_identity("ViT-B-32/random")


def test_random_weights_are_the_same_every_time(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (folder / "Tiny-CLIP-For-Tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "Tiny-CLIP-For-Tests.json")
    try:
        first, second = load_clip("Tiny-CLIP-For-Tests/random"), load_clip("Tiny-CLIP-For-Tests/random")
        assert torch.equal(first.encode_image(pixels(2)), second.encode_image(pixels(2)))
        weights = f"Tiny-CLIP-For-Tests/{folder / 'open_clip_model.safetensors'}"
        torch.testing.assert_close(load_clip(weights).encode_text(["cat"]), tiny_clip(seed=3).encode_text(["cat"]))
        assert clip_identity(weights) != clip_identity("Tiny-CLIP-For-Tests/random")
    finally:
        (folder / "Tiny-CLIP-For-Tests.json").unlink()


@pytest.mark.parametrize("name", [
    "nonsense", "ViT-B-32", "/no/such/folder", "ViT-B-32/no-such-tag",
    pytest.param("ViT-B-33/openai", marks=pytest.mark.slow),  # the hub is asked, and asked again
])  # fmt: skip
def test_an_unknown_name_is_one_sentence(name):
    with pytest.raises(UserError, match=r"Setting model\.clip=") as caught:
        load_clip(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_configuration_or_weights_is_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match=r"neither open_clip_config\.json"):
        load_clip(str(tmp_path))
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_clip(str(folder))
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        load_clip(str(folder))


@pytest.mark.skipif(not (MINI / "open_clip_config.json").is_file(), reason="The miniature model is not in this tree.")
def test_the_miniature_model_loads_and_crops():
    clip = load_clip("mini")
    assert clip.text_tower.croppable
    texts = ["a photo of a cat", "a satellite photo of an annual crop land"]
    expected_TD = clip.model.encode_text(clip.text_tower.tokenize(texts), normalize=True)
    torch.testing.assert_close(clip.encode_text(texts), expected_TD, rtol=0, atol=1e-5)


FILES = {
    "MobileCLIP2-S0//x/file.pt": ("bilinear", "shortest", (0.0, 0.0, 0.0), False),
    "ViT-B-16-SigLIP2//f.safetensors": ("bicubic", "squash", (0.5, 0.5, 0.5), False),
    "ViT-L-14-CLIPA//a.pt": ("bilinear", "squash", (0.485, 0.456, 0.406), False),
    "PE-Core-T-16-384//a.pt": ("bilinear", "squash", (0.5, 0.5, 0.5), False),
    "ViT-B-32//w/laion2b.pt": ("bicubic", "shortest", (0.48145466, 0.4578275, 0.40821073), False),
    "ViT-B-32//w/OpenAI.pt": ("bicubic", "shortest", (0.48145466, 0.4578275, 0.40821073), True),
    "ViT-B-16//metaclip_b16.pt": ("bicubic", "shortest", (0.48145466, 0.4578275, 0.40821073), True),
    "ViT-B-32-quickgelu//a.pt": ("bicubic", "shortest", (0.48145466, 0.4578275, 0.40821073), True),
}


@pytest.mark.parametrize(("name", "wanted"), FILES.items())
def test_weights_in_a_file_are_prepared_as_their_family_wants_it(name, wanted):
    given = family_arguments(*name.split("/", 1))
    prepared = [given["force_preprocess_cfg"][key] for key in ("interpolation", "resize_mode", "mean")]
    assert (*prepared, given["force_quick_gelu"]) == wanted


@pytest.mark.slow
def test_a_file_of_another_family_is_loaded_with_its_preparation(tmp_path):
    model = open_clip.create_model("MobileCLIP2-S0", pretrained=None)
    torch.save(model.state_dict(), tmp_path / "file.pt")
    clip = load_clip(f"MobileCLIP2-S0/{tmp_path}/file.pt")
    assert clip.image_spec.interpolation == "bilinear"
    assert clip.image_spec.mean == (0.0, 0.0, 0.0)
