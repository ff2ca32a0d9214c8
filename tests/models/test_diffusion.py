"""The image maker: any pipeline by name, images that depend on their class and number alone, mistakes in a sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from pretraining.diffusion_model import load_tokenizer
from raydapt.errors import UserError
from raydapt.models.diffusion import ImageMaker, Sampling, image_seed
from raydapt.models.pipelines import MINI, load_pipeline, native_size_px, pipeline_identity
from tests.models.tiny_diffusion import save_tiny_pipeline

SAMPLING = Sampling(scheduler="dpm++", steps=3, guidance=3.0, negative_prompt="", size_px=16, seed=0, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return save_tiny_pipeline(tmp_path_factory.mktemp("diffusion") / "tiny")


def make(folder: str, indices: list[int], **changes: object) -> np.ndarray:
    sampling = replace(SAMPLING, **changes)  # type: ignore[arg-type]
    return ImageMaker(load_pipeline(folder), sampling).make("a photo of a dog.", "dog", indices)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["pipeline", "ddim", "dpm++", "euler", "lcm"])
def test_an_image_depends_on_its_number_alone(folder: str, scheduler: str) -> None:
    maker = ImageMaker(load_pipeline(folder), replace(SAMPLING, scheduler=scheduler))  # type: ignore[arg-type]
    together = maker.make("a photo of a dog.", "dog", range(4))
    assert together.shape == (4, 16, 16, 3)
    assert together.dtype == np.uint8
    alone = maker.make("a photo of a dog.", "dog", [2])
    np.testing.assert_array_equal(alone[0], together[2])
    mixed = maker.make("a photo of a dog.", "dog", [7, 2, 0])
    np.testing.assert_array_equal(mixed[1], together[2])
    np.testing.assert_array_equal(mixed[2], together[0])
    seconds, work = maker.clock.read()
    assert seconds > 0
    assert work.flop > 0
    assert not work.peak_flop_per_s


def test_the_batch_size_changes_nothing_to_be_seen(folder: str) -> None:
    small, large = make(folder, [0, 1], batch_size=2), make(folder, list(range(7)), batch_size=7)
    assert np.abs(small.astype(int) - large[:2].astype(int)).max() <= 1


@pytest.mark.slow
def test_seed_class_guidance_and_negative_prompt_change_the_image(folder: str) -> None:
    base = make(folder, [0])
    assert not np.array_equal(base, make(folder, [0], seed=1))
    assert not np.array_equal(base, make(folder, [0], guidance=1.0))
    assert not np.array_equal(base, make(folder, [0], negative_prompt="a cat"))
    assert len({image_seed(seed, name, i) for seed in (0, 1) for name in ("dog", "cat") for i in range(50)}) == 200


def test_guidance_is_that_of_a_plain_call(folder: str) -> None:
    maker = ImageMaker(load_pipeline(folder), SAMPLING)
    (image,) = maker.make("a photo of a dog.", "dog", [5])
    pipeline = load_pipeline(folder)
    generator = torch.Generator().manual_seed(image_seed(0, "dog", 5))
    plain = pipeline(
        "a photo of a dog.", generator=generator, num_inference_steps=3, guidance_scale=3.0, output_type="pt"
    ).images[0]
    expected = (plain.permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(expected - image).max() <= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's, of its own modules
def test_a_compiled_unet_makes_the_same_images_by_rounding_apart() -> None:
    """Of the miniature, which makes pictures of something: at most one step of 255, as docs/pipelines.md says."""
    torch._dynamo.reset()
    sampling = replace(SAMPLING, steps=20, guidance=7.5, size_px=32, batch_size=6)
    eager = ImageMaker(load_pipeline("mini"), sampling)
    fast = ImageMaker(load_pipeline("mini"), sampling, compile_denoiser=True)
    made = [maker.make("a photo of a dog.", "dog", range(6)).astype(int) for maker in (eager, fast)]
    assert np.abs(made[0] - made[1]).max() <= 1
    assert fast.clock.read()[1] == eager.clock.read()[1]
    with torch._dynamo.config.patch(error_on_recompile=True):  # neither for fewer images nor for another text
        made = [maker.make("a drawing of two cats.", "cat", [8, 3]).astype(int) for maker in (eager, fast)]
    assert np.abs(made[0] - made[1]).max() <= 1


def test_one_step_of_a_turbo_pipeline_is_that_of_a_plain_call(folder: str) -> None:
    """SD-Turbo's folder: Stable Diffusion with a sampler that begins at the last of its times; no guidance."""

    def turbo() -> StableDiffusionPipeline:
        pipeline = load_pipeline(folder)
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
        return pipeline

    sampling = replace(SAMPLING, scheduler="pipeline", steps=1, guidance=0.0, batch_size=1)
    (image,) = ImageMaker(turbo(), sampling).make("a photo of a dog.", "dog", [5])
    generator = torch.Generator().manual_seed(image_seed(0, "dog", 5))
    plain = turbo()(
        "a photo of a dog.", generator=generator, num_inference_steps=1, guidance_scale=0.0, output_type="pt"
    ).images[0]
    assert np.abs((plain.permute(1, 2, 0) * 255).round().numpy() - image).max() <= 1


def test_size_and_identity_come_from_the_folder(folder: str, tmp_path: Path) -> None:
    assert native_size_px(folder) == 16
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("a card")
    assert pipeline_identity(str(copy)) == pipeline_identity(folder)
    other = save_tiny_pipeline(tmp_path / "other", seed=1)
    assert pipeline_identity(other) != pipeline_identity(folder)
    with pytest.raises(UserError, match=r"size_px=20 must be a multiple of 8"):
        make(folder, [0], size_px=20)


def test_overflow_is_an_error_not_a_black_image(folder: str) -> None:
    pipeline = load_pipeline(folder)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError):
        ImageMaker(pipeline, SAMPLING).make("a dog", "dog", [0])


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_without_a_part_is_one_sentence(folder: str, tmp_path: Path, part: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / part)
    with pytest.raises(UserError, match=rf"synthesis\.pipeline=.*lacks {part}/"):
        load_pipeline(str(copy))


def test_what_is_no_pipeline_is_one_sentence(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_pipeline("./nowhere")
    with pytest.raises(UserError, match=r"no model_index\.json"):
        load_pipeline(str(tmp_path))
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"no whole \.safetensors file"):
        load_pipeline(str(copy))
    weights.write_bytes(whole)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanPipeline"}))
    with pytest.raises(UserError, match="holds a WanPipeline, which was never tried here"):
        load_pipeline(str(copy))


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")
def test_a_hub_name_without_a_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline("nobody/nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        native_size_px("nobody/nothing")


def sd15_parts(divisor: int) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """The configuration of Stable Diffusion 1.5, its widths divided; random weights."""
    width = 768 // divisor
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=width, attention_head_dim=8, norm_num_groups=32 // divisor,
        block_out_channels=tuple(w // divisor for w in (320, 640, 1280, 1280)),
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(w // divisor for w in (128, 256, 512, 512)), layers_per_block=2, latent_channels=4,
        norm_num_groups=32 // divisor, sample_size=512, scaling_factor=0.18215,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77,
    )  # fmt: skip
    return unet, vae, CLIPTextModel(text)


def check_sd15(folder: Path, divisor: int) -> None:
    unet, vae, text_encoder = sd15_parts(divisor)
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=load_tokenizer(), unet=unet,
        scheduler=PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                                steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    del unet, vae, text_encoder
    assert native_size_px(str(folder)) == 512
    sampling = replace(SAMPLING, size_px=64, steps=1, guidance=7.5, batch_size=1)
    assert ImageMaker(load_pipeline(str(folder)), sampling).make("a dog", "dog", [0]).shape == (1, 64, 64, 3)


@pytest.mark.slow
def test_a_stable_diffusion_folder_of_smaller_widths(tmp_path: Path) -> None:
    check_sd15(tmp_path / "sd", divisor=8)


@pytest.mark.slow
@pytest.mark.skipif(shutil.disk_usage("/tmp").free < 10e9, reason="the weights take 4.3 GB")
def test_a_stable_diffusion_folder_of_full_size(tmp_path: Path) -> None:
    check_sd15(tmp_path / "sd", divisor=1)
    shutil.rmtree(tmp_path / "sd")


def test_the_miniature_is_small_and_a_pipeline_of_its_ecosystem() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) < 15e6
    pipeline = StableDiffusionPipeline.from_pretrained(str(MINI))
    assert native_size_px("mini") == 32
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
