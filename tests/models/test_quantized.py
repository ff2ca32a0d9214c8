"""FP8 in the denoiser: weights that are truly FP8, images near those of full precision, and who is refused."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from raydapt.artefacts.synthetic_images import synthesis_recipe
from raydapt.errors import UserError
from raydapt.models.diffusion import ImageMaker, Sampling
from raydapt.models.diffusion_lora import adapter_weights, add_adapters, apply_lora, lora_bytes
from raydapt.models.pipelines import KINDS, load_pipeline
from raydapt.models.quantized import is_quantizable, quantize_linear_layers, require_fp8_units, require_torchao
from raydapt.settings.groups import DenoiserPrecision
from tests.models.tiny_pipelines import build

SAMPLING = Sampling(scheduler="dpm++", steps=20, guidance=7.5, negative_prompt="", size_px=32, seed=0, batch_size=4)
PROMPTS = ("a photo of a dog.", "a photo of a red car.", "a drawing of a 7.")


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao", reason="the extra fp8 is not installed")
    torch.set_num_threads(1)


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def images(pipeline: Any, precision: DenoiserPrecision, *, steps: int = 20, **more: Any) -> np.ndarray:
    maker = ImageMaker(pipeline, replace(SAMPLING, precision=precision, steps=steps), **more)
    return np.concatenate([maker.make(prompt, "class", range(4)).astype(int) for prompt in PROMPTS])


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio; two unlike images of the miniature have 10 dB."""
    return float(10 * np.log10(255**2 / ((one - other) ** 2).mean()))


@pytest.mark.usefixtures("torchao")
def test_linear_layers_hold_fp8_and_nothing_else_does() -> None:
    from torchao.quantization import Float8Tensor

    before, unet = load_pipeline("mini").unet, load_pipeline("mini").unet
    quantize_linear_layers(unet, "fp8-weights")
    whole = dict(before.named_parameters())
    for name, module in unet.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            assert isinstance(weight, Float8Tensor)
            assert weight.qdata.dtype == torch.float8_e4m3fn
            assert weight.scale.shape == (module.out_features, 1)
        elif weight is not None:
            assert not isinstance(weight, Float8Tensor)
            assert torch.equal(weight, whole[f"{name}.weight"])
    assert len(linear_layers(unet)) == 50


@pytest.mark.usefixtures("torchao")
def test_a_weight_is_rounded_row_by_row() -> None:
    layer = nn.Linear(32, 16)
    weight_OI = layer.weight.detach().clone()
    quantize_linear_layers(nn.Sequential(layer), "fp8-weights")
    for row_I, found_I in zip(weight_OI, layer.weight.dequantize(), strict=True):  # type: ignore[operator]
        scale = float(row_I.abs().max()) / 448  # the largest number of e4m3
        expected_I = (row_I / scale).to(torch.float8_e4m3fn).float() * scale
        torch.testing.assert_close(found_I, expected_I, rtol=1e-5, atol=0)
        assert not torch.equal(found_I, row_I)
    pixel_BI = torch.randn(5, 32)
    expected_BO = pixel_BI @ layer.weight.dequantize().T + layer.bias  # type: ignore[operator]
    torch.testing.assert_close(layer(pixel_BI), expected_BO)


def test_sides_that_fp8_units_cannot_take_are_left() -> None:
    assert is_quantizable(nn.Linear(32, 16))
    assert not is_quantizable(nn.Linear(32, 24))
    assert not is_quantizable(nn.Linear(24, 32))
    assert not is_quantizable(nn.Conv2d(16, 16, 1))


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
def test_images_are_near_those_of_full_precision() -> None:
    whole, rounded = images(load_pipeline("mini"), "auto"), images(load_pipeline("mini"), "fp8-weights")
    assert 0 < np.abs(whole - rounded).mean() <= 2
    assert min(psnr_db(one, other) for one, other in zip(whole, rounded, strict=True)) >= 35
    assert psnr_db(whole, np.roll(whole, 4, axis=0)) < 15


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
def test_a_lora_is_added_before_it_is_rounded() -> None:
    taught = load_pipeline("mini")
    torch.manual_seed(0)
    add_adapters(taught, rank=4, text_encoder=False)
    with torch.no_grad():
        for name, weight in taught.unet.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn_like(weight))
    data, made = lora_bytes(adapter_weights(taught, text_encoder=False)), {}
    for precision in ("auto", "fp8-weights"):
        pipeline = load_pipeline("mini")
        apply_lora(pipeline, data)
        made[precision] = images(pipeline, precision, steps=6)
    without = images(load_pipeline("mini"), "fp8-weights", steps=6)
    near = psnr_db(made["auto"], made["fp8-weights"])
    assert near >= 35
    assert near > psnr_db(made["fp8-weights"], without) + 10


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pipeline(tmp_path: Path, kind: str) -> None:
    build(kind).save_pretrained(tmp_path)
    how = replace(SAMPLING, scheduler="pipeline", steps=2, guidance=4.0, batch_size=2)
    made = []
    for precision in ("auto", "fp8-weights"):
        pipeline = load_pipeline(str(tmp_path))
        made.append(ImageMaker(pipeline, replace(how, precision=precision)).make("a dog", "dog", [0, 1]).astype(int))
    layers = linear_layers(getattr(pipeline, "unet", None) or pipeline.transformer)
    assert [type(layer.weight).__name__ == "Float8Tensor" for layer in layers] == [is_quantizable(x) for x in layers]
    assert any(is_quantizable(layer) for layer in layers)
    assert not np.array_equal(*made)
    assert psnr_db(*made) >= 30


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's, of its own modules
def test_torch_compiles_it() -> None:
    torch._dynamo.reset()
    eager = images(load_pipeline("mini"), "fp8-weights")
    assert np.abs(images(load_pipeline("mini"), "fp8-weights", compile_denoiser=True) - eager).max() <= 1


@pytest.mark.usefixtures("torchao")
def test_a_copy_of_the_layout_in_memory_keeps_fp8() -> None:
    """As `ImageMaker` lays out the UNet on a card; a later move must not bring full weights back."""
    unet = load_pipeline("mini").unet
    quantize_linear_layers(unet, "fp8-weights")
    unet.to(memory_format=torch.channels_last)
    assert {type(layer.weight).__name__ for layer in linear_layers(unet)} == {"Float8Tensor"}


def test_fp8_wants_a_card_that_multiplies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"precision=fp8 needs GPUs of .* 8\.9 or more.* has a CPU: set it to fp8-weig"):
        load_pipeline("mini", precision="fp8")
    card = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UserError, match=r"an actor has NVIDIA A100-SXM4-80GB \(compute capability 8\.0\)"):
        require_fp8_units("fp8", card)
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        require_fp8_units("fp8", card)
    require_fp8_units("fp8-weights", torch.device("cpu"))
    require_fp8_units("auto", torch.device("cpu"))


def test_without_torchao_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)  # importing it fails as if it were not there
    with pytest.raises(UserError, match=r"precision=fp8-weights needs torchao .*: pip install 'raydapt\[fp8\]'"):
        load_pipeline("mini", precision="fp8-weights")
    with pytest.raises(UserError, match="needs torchao"):
        quantize_linear_layers(nn.Linear(16, 16), "fp8-weights")
    assert require_torchao("auto") is None


def test_images_in_fp8_have_names_of_their_own() -> None:
    how = replace(SAMPLING, steps=2, guidance=2.0, size_px=16, seed=3)
    recipes = [
        synthesis_recipe(("dog", "cat"), "a {}.", replace(how, precision=precision), "weights", "")
        for precision in get_args(DenoiserPrecision)
    ]
    assert recipes[0].fingerprint == "adf0420dfa9570f3"  # as it was before there were others
    assert len({recipe.fingerprint for recipe in recipes}) == 3
