"""LoRA of the pipeline: its loss against a naive loop, its file, and files that do not fit."""

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load, save, save_file

from raydapt.errors import UserError
from raydapt.models.diffusion_lora import (
    WEIGHTS_FILE,
    DenoisingWithAdapters,
    adapter_weights,
    add_adapters,
    apply_lora,
    encode_latents,
    lora_bytes,
    read_lora,
)
from tests.models.tiny_diffusion import tiny_pipeline


def trained(rank: int, *, text_encoder: bool, width: int = 16) -> StableDiffusionPipeline:
    """A pipeline whose adapters do something."""
    pipeline = tiny_pipeline(width=width)
    for part in (pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    torch.manual_seed(1)
    add_adapters(pipeline, rank=rank, text_encoder=text_encoder)
    task = DenoisingWithAdapters(pipeline, text_encoder=text_encoder)
    with torch.no_grad():
        for weight in task.learned().values():
            weight.add_(torch.randn_like(weight) * 0.3)
    return pipeline


def picture(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images: torch.Tensor = pipeline("a dog", generator=generator, num_inference_steps=2, output_type="pt").images
    return images


@pytest.mark.parametrize("text_encoder", [False, True])
def test_saved_weights_make_the_same_image(tmp_path: Path, text_encoder: bool) -> None:
    pipeline = trained(4, text_encoder=text_encoder)
    expected = picture(pipeline)
    data = lora_bytes(adapter_weights(pipeline, text_encoder=text_encoder))
    fused = tiny_pipeline()
    apply_lora(fused, data)
    torch.testing.assert_close(picture(fused), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(picture(tiny_pipeline()), expected, atol=1e-3)
    assert not any("lora" in name for name, _ in fused.unet.named_parameters())
    (tmp_path / WEIGHTS_FILE).write_bytes(data)
    plain = tiny_pipeline()
    plain.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(picture(plain), expected, atol=1e-4, rtol=0)
    assert read_lora(str(tmp_path), rank=4) == data


def test_only_attention_projections_are_learned() -> None:
    pipeline = trained(2, text_encoder=False)
    task = DenoisingWithAdapters(pipeline, text_encoder=False)
    layers = {name.split(".lora_")[0].split(".attn")[-1].split(".", 1)[1] for name in task.learned()}
    assert layers == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all("lora_" in name for name in task.learned())


@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_part_that_the_file_leaves_as_it_is_makes_no_noise(text_encoder: bool) -> None:
    weights = adapter_weights(trained(4, text_encoder=True), text_encoder=True)
    part = "text_encoder." if text_encoder else "unet."
    said: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("diffusers")
    handler.emit = said.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        apply_lora(tiny_pipeline(), lora_bytes({name: one for name, one in weights.items() if name.startswith(part)}))
        assert said == []
        logging.getLogger("diffusers.loaders.lora_pipeline").warning("heard")
        assert len(said) == 1
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_naive_one(prediction: str) -> None:
    pipeline = tiny_pipeline(prediction=prediction)
    task = DenoisingWithAdapters(pipeline, text_encoder=False)
    torch.manual_seed(2)
    clean, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    time, token = torch.tensor([3, 500, 999]), torch.randint(4096, (3, 32))
    kept = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
    total = 0.0
    with torch.no_grad():
        for i in range(3):
            a, s = kept[time[i]].sqrt(), (1 - kept[time[i]]).sqrt()
            noisy = a * clean[i] + s * noise[i]
            wanted = noise[i] if prediction == "epsilon" else a * noise[i] - s * clean[i]
            states = pipeline.text_encoder(token[i : i + 1])[0]
            got = pipeline.unet(noisy[None], time[i], encoder_hidden_states=states).sample[0]
            total += float((got - wanted).square().mean()) / 3
        assert float(task(clean, noise, time, token)) == pytest.approx(total, rel=1e-4)


def test_latents_are_those_of_the_pipeline() -> None:
    pipeline = tiny_pipeline()
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    mean, deviation = encode_latents(pipeline, pixels, batch=2)
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels[1:2] / 127.5 - 1).latent_dist
    scale = pipeline.vae.config.scaling_factor
    torch.testing.assert_close(mean[1:2], posterior.mean * scale)
    torch.testing.assert_close(deviation[1:2], posterior.std * scale)


def test_weights_of_another_model_are_one_sentence() -> None:
    pipeline = trained(4, text_encoder=False, width=32)
    data = lora_bytes(adapter_weights(pipeline, text_encoder=False))
    with pytest.raises(UserError, match="belong to another model"):
        apply_lora(tiny_pipeline(), data)


def test_wrong_folders_and_ranks_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"synthesis\.lora=.*{WEIGHTS_FILE}"):
        read_lora(str(tmp_path), rank=4)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        read_lora(str(tmp_path), rank=4)
    save_file({"a": torch.zeros(2)}, str(tmp_path / WEIGHTS_FILE))
    with pytest.raises(UserError, match="holds no LoRA weights"):
        read_lora(str(tmp_path), rank=4)
    weights = adapter_weights(trained(8, text_encoder=False), text_encoder=False)
    (tmp_path / WEIGHTS_FILE).write_bytes(lora_bytes(weights))
    with pytest.raises(UserError, match=r"rank 8, but lora\.rank=4"):
        read_lora(str(tmp_path), rank=4)


def kohya(weights: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The UNet's matrices as kohya's trainers name them."""
    names = {}
    for name, tensor in weights.items():
        layer, _, rest = name.removeprefix("unet.").partition(".lora")
        which = "down" if "down" in rest or rest.startswith("_A") else "up"
        stem = f"lora_unet_{layer.replace('.', '_')}"
        names[f"{stem}.lora_{which}.weight"] = tensor
        names[f"{stem}.alpha"] = torch.tensor(alpha)
    return names


def layered(weights: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The same with a tensor of alpha beside diffusers' names."""
    return weights | {f"{name.split('.lora')[0]}.alpha": torch.tensor(alpha) for name in weights}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["header", "tensors", "kohya"])
@pytest.mark.parametrize("alpha", [4, 16])
def test_alpha_counts_wherever_a_file_has_it(tmp_path: Path, layout: str, alpha: int) -> None:
    pipeline = trained(4, text_encoder=False)
    weights = load(lora_bytes(adapter_weights(pipeline, text_encoder=False)))
    # B A alpha / rank, by hand: the same with alpha = rank and a larger A
    down = {name: t * (alpha / 4 if ".lora_A" in name or ".lora.down" in name else 1) for name, t in weights.items()}
    expected = tiny_pipeline()
    expected.load_lora_weights({name: tensor.clone() for name, tensor in down.items()})
    if layout == "header":
        targets = sorted({name.split(".lora")[0].removeprefix("unet.") for name in weights})
        config = {"unet.r": 4, "unet.lora_alpha": alpha, "unet.target_modules": targets}
        data = save(weights, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    else:
        data = save((kohya if layout == "kohya" else layered)(weights, float(alpha)))
    (tmp_path / WEIGHTS_FILE).write_bytes(data)
    fused = tiny_pipeline()
    apply_lora(fused, read_lora(str(tmp_path), rank=4))
    torch.testing.assert_close(picture(fused), picture(expected), atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    ("part", "other", "kind"),
    [("lora_up.weight", "dora_scale", "DoRA"), ("lora_down.weight", "lora_mid.weight", "LoCon"),
     ("lora_up.weight", "hada_w1_a", "LoHa"), ("lora_down.weight", "lokr_w1", "LoKr")],
)  # fmt: skip
def test_weights_that_are_more_than_two_matrices_are_refused(tmp_path: Path, part: str, other: str, kind: str) -> None:
    """diffusers would leave the scale of DoRA out, and make other images than the weights are for."""
    weights = kohya(load(lora_bytes(adapter_weights(trained(4, text_encoder=False), text_encoder=False))), 4.0)
    more = {name.replace(part, other): tensor.clone() for name, tensor in weights.items() if name.endswith(part)}
    (tmp_path / WEIGHTS_FILE).write_bytes(save(weights | more))
    with pytest.raises(UserError, match=f"holds weights of {kind}.*give plain LoRA weights"):
        read_lora(str(tmp_path), rank=4)
