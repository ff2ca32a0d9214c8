"""Weights of other people's files: read without running their code, and refused in a sentence where they do not fit."""

import argparse
import json
import os
import pickle
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raydapt.errors import UserError
from raydapt.models.clip import clip_identity, load_clip
from raydapt.models.clip_names import find_clip
from raydapt.models.weight_files import is_torchscript, load_weights, read_weights
from tests.models.tiny import SPEC, TEXT, VISION, tiny_model

SETTING = "Setting model.clip='x'"


def saved(folder: Path, value: object, name: str = "x.pt") -> Path:
    torch.save(value, folder / name)
    return folder / name


class _Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, bias=False)
        self.register_buffer("positional_embedding", torch.randn(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(x)


class _Archive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = _Tower()
        self.blocks = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) * self.logit_scale


@pytest.mark.parametrize("half", [False, True])
def test_an_archive_of_torchscript_is_read_without_running_it(tmp_path: Path, half: bool) -> None:
    model = _Archive().half() if half else _Archive()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(model).save(str(tmp_path / "x.pt"))
    assert is_torchscript(tmp_path / "x.pt")
    found = read_weights(tmp_path / "x.pt", setting=SETTING)
    wanted = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)


def test_state_dicts_as_people_keep_them(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2), "b": torch.zeros(3)}
    for value in (
        weights,
        {"state_dict": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1, name="run")},
        {"state_dict": {f"module.{name}": one for name, one in weights.items()}},
        {"model": {f"_orig_mod.{name}": one for name, one in weights.items()}},
    ):
        found = read_weights(saved(tmp_path, value), setting=SETTING)
        assert {name: one.tolist() for name, one in found.items()} == {"a": [1, 1], "b": [0, 0, 0]}


class _Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.pth"])
def test_code_in_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="could run any code") as caught:
        read_weights(saved(tmp_path, {"state_dict": {"a": torch.ones(1)}, "x": _Harmful()}, name), setting=SETTING)
    assert "\n" not in str(caught.value)
    (tmp_path / name).write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(UserError):
        read_weights(tmp_path / name, setting=SETTING)
    assert not (tmp_path / "harmed").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    for data, name in ((b"", "x.pt"), (b"<html>", "x.bin"), (b"<html>" * 20, "x.safetensors")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            read_weights(tmp_path / name, setting=SETTING)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no weights by name"):
        read_weights(saved(tmp_path, [torch.ones(1)]), setting=SETTING)


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    model, state = tiny_model(), tiny_model(seed=3).state_dict()
    load_weights(model, state, tmp_path, setting=SETTING)
    assert torch.equal(model.state_dict()["visual.proj"], state["visual.proj"])
    wider = open_clip.CLIP(24, VISION | {"width": 48}, TEXT).state_dict()
    with pytest.raises(UserError, match=r"has the shape .* and the architecture that was named wants"):
        load_weights(tiny_model(), wider, tmp_path, setting=SETTING)
    with pytest.raises(UserError, match="are missing, such as"):
        load_weights(tiny_model(), {"visual.proj": state["visual.proj"]}, tmp_path, setting=SETTING)
    with pytest.raises(UserError, match="have no place, such as more"):
        load_weights(tiny_model(), state | {"more": torch.ones(1)}, tmp_path, setting=SETTING)


def model_folder(folder: Path, weights: dict[str, torch.Tensor], name: str, **preprocess: object) -> Path:
    folder.mkdir(exist_ok=True)
    prepared = {"mean": list(SPEC.mean), "std": list(SPEC.std), "interpolation": "bicubic"} | preprocess
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": prepared}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(weights, folder / name) if not name.endswith("safetensors") else save_file(weights, folder / name)
    return folder


def test_a_folder_with_weights_of_any_suffix(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in tiny_model(seed=3).state_dict().items()}
    for name in ("RemoteCLIP-ViT-B-32.pt", "x.pth", "open_clip_pytorch_model.bin", "open_clip_model.safetensors"):
        clip = load_clip(str(model_folder(tmp_path / name, state, name)))
        assert torch.equal(clip.model.state_dict()["visual.proj"], state["visual.proj"])


def test_preprocessing_that_is_not_done_here_is_a_sentence(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in tiny_model().state_dict().items()}
    name = "open_clip_model.safetensors"
    assert load_clip(
        str(model_folder(tmp_path / "a", state, name, interpolation="random"))
    ).image_spec.interpolation == ("bicubic")
    with pytest.raises(UserError, match="pads images with 127"):
        load_clip(str(model_folder(tmp_path / "b", state, name, resize_mode="longest", fill_color=127)))


@pytest.mark.slow
def test_a_file_tells_its_architecture_by_its_name_or_is_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, architecture in {"ViT-B-32.pt": "ViT-B-32", "ViT-L-14-336px.pt": "ViT-L-14-336",
                               "ViT-L-14@336px.pt": "ViT-L-14-336", "RemoteCLIP-RN50.pt": "RN50"}.items():  # fmt: skip
        saved(tmp_path, {"a": torch.ones(1)}, name)
        assert find_clip(str(tmp_path / name)).model_name == architecture
    assert find_clip(str(tmp_path / "ViT-B-32.pt")).forced["force_quick_gelu"] is False
    assert find_clip(f"ViT-B-32/{saved(tmp_path, {}, 'openai.pt')}").forced["force_quick_gelu"] is True
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_clip("ViT-B-32/~/openai.pt").weights == tmp_path / "openai.pt"
    assert clip_identity("ViT-B-32/~/openai.pt") == clip_identity(f"ViT-B-32/{tmp_path}/openai.pt")
    saved(tmp_path, {"a": torch.ones(1)}, "epoch_3.pt")
    with pytest.raises(UserError, match="tells no architecture: write ARCHITECTURE/"):
        load_clip(str(tmp_path / "epoch_3.pt"))
    with pytest.raises(UserError, match=r"neither a file nor a tag of ViT-B-32 \(openai"):
        load_clip("ViT-B-32/opnai")
    with pytest.raises(UserError, match="no such folder and no such file"):
        load_clip(str(tmp_path / "gone.pt"))
    with pytest.raises(UserError, match="missing"):
        load_clip(f"ViT-B-32/{tmp_path}/epoch_3.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "ViT-B-32/openai", "hf-hub:timm/ViT-B-16-SigLIP2", "openai/clip-vit-base-patch32", "hf-hub:org/name@v1.0",
])  # fmt: skip
def test_names_of_the_hub_without_a_network(tmp_path: Path, name: str) -> None:
    """In a process of its own: the library reads its environment when it is imported."""
    import subprocess
    import sys

    code = f"from raydapt.models.clip import load_clip\nload_clip({name!r})"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = ran.stderr.strip().splitlines()[-1]
    assert f"Setting model.clip={name!r} is not in the cache ({tmp_path / 'hub'})" in last
    assert "`hf download " in last
    assert ("--revision v1.0" in last) == name.endswith("v1.0")
    assert "ERROR:root" not in ran.stderr


@pytest.mark.slow
def test_a_name_of_the_hub_in_the_cache_is_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    state = {name: value.contiguous() for name, value in tiny_model(seed=3).state_dict().items()}
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        repository = tmp_path / "models--org--tiny"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots").mkdir(exist_ok=True)
        scale = 1.0 if revision == "main" else 2.0
        scaled = state | {"visual.proj": state["visual.proj"] * scale}
        model_folder(repository / "snapshots" / commit, scaled, "open_clip_model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, scale in (("hf-hub:org/tiny", 1.0), ("org/tiny", 1.0), ("hf-hub:org/tiny@v2", 2.0)):
        found = load_clip(name)
        assert torch.equal(found.model.state_dict()["visual.proj"], state["visual.proj"] * scale)
        assert found.identity == f"{name}@open_clip-{open_clip.__version__}"
