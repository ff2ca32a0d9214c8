"""The job that trains the miniature diffusion model: parts, losses, what is drawn, resuming, and a tiny run."""

import dataclasses
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline

from pretraining import diffusion_pretraining
from pretraining.clip_model import CONTEXT_LENGTH
from pretraining.diffusion_batches import STYLE_DOMAINS, STYLE_TEMPLATES, STYLES
from pretraining.diffusion_losses import DenoisingTask, ReconstructionTask
from pretraining.diffusion_model import (
    CLIP_FOLDER,
    NOISE_SCHEDULE,
    TEXT_TOKENS,
    build_unet,
    build_vae,
    convert_text_encoder,
    encode_texts,
    export_pipeline,
    load_clip,
    load_tokenizer,
    standardise_latents,
)
from pretraining.diffusion_settings import DiffusionPretraining, read_settings
from pretraining.diffusion_trainer import DiffusionPretrainer
from raydapt.errors import UserError
from tests.pretraining.test_clip_pretraining import write_parquet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DiffusionPretraining:
    """A job over a few random images, with digits in the cache so that no fonts are needed."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("diffusion")
    pretrain, cache = root / "data" / "pretrain", root / "storage" / "cache"
    pretrain.mkdir(parents=True)
    cache.mkdir(parents=True)
    photos = [([name], name, "tiny-imagenet") for name in ("dog", "Chihuahua", "cat")] * 20
    write_parquet(pretrain / "photos.parquet", photos, 48)
    aerial = [(["river", "stream"], "river", "resisc12"), (["forest", "trees"], "forest", "rsscn7")] * 20
    write_parquet(pretrain / "aerial.parquet", aerial, 64)
    write_parquet(pretrain / "flickr8k.parquet", [(["a dog runs ."], None, "flickr8k")] * 2, 48)
    faces = np.random.default_rng(1).integers(0, 256, (4, 10, 48, 48), dtype=np.uint8)
    np.save(cache / "digits-train.npy", faces)
    return DiffusionPretraining(
        data=str(root / "data"),
        storage=str(root / "storage"),
        name="tiny",
        vae_channels=(8, 8, 8),
        vae_samples=8,
        vae_batch_size=4,
        unet_channels=(16, 16),
        bank_images=20,
        samples=16,
        batch_size=4,
        log_every_steps=1,
        checkpoint_every_s=1e9,
    )


def test_the_committed_job_is_valid() -> None:
    job = Path(__file__).parents[2] / "pretraining" / "jobs" / "diffusion.yaml"
    settings = read_settings([str(job), "seed=7"])
    assert settings == dataclasses.replace(DiffusionPretraining(), seed=7)
    assert sum(settings.shares.values()) == pytest.approx(1.0)
    assert set(settings.shares) == set(STYLES) == set(STYLE_DOMAINS) == set(STYLE_TEMPLATES)
    with pytest.raises(UserError, match=r"diffusion\.yaml"):
        read_settings([])


def test_the_text_encoder_is_the_tower_of_the_clip() -> None:
    texts = ["a photo of a dog.", "a centered satellite photo of annual crop land."]
    states = encode_texts(texts, load_tokenizer(), convert_text_encoder()).float()
    assert states.shape == (2, TEXT_TOKENS, 128)
    clip = load_clip()
    tokens = open_clip.get_tokenizer(f"local-dir:{CLIP_FOLDER}")(texts)
    assert tokens.shape == (2, CONTEXT_LENGTH)
    ends = tokens.argmax(1)
    with torch.no_grad():
        expected = clip.encode_text(tokens)
        found = states[torch.arange(2), ends] @ clip.text_projection
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_standardised_latents_change_no_reconstruction() -> None:
    torch.manual_seed(0)
    vae = build_vae((8, 8, 8), 4).eval()
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        rebuilt = vae.decode(before.mode()).sample
        standardise_latents(vae, before.mode())
        after = vae.encode(images).latent_dist
        torch.testing.assert_close(vae.decode(after.mode()).sample, rebuilt, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(after.mode().mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mode().std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    ratio = (after.std / before.std) * before.mode().std((0, 2, 3)).view(1, -1, 1, 1)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-3, rtol=1e-3)


def test_the_denoising_loss_is_the_naive_one() -> None:
    torch.manual_seed(0)
    unet = build_unet((16, 16), 4, text_width=128, side=8).eval()
    task = DenoisingTask(unet, min_snr=5.0)
    clean, noise, states = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(3, 5, 128)
    time = torch.tensor([1, 400, 990])
    kept = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod
    total = 0.0
    with torch.no_grad():
        for i in range(3):
            k = float(kept[time[i]])
            noisy = k**0.5 * clean[i] + (1 - k) ** 0.5 * noise[i]
            velocity = k**0.5 * noise[i] - (1 - k) ** 0.5 * clean[i]
            got = unet(noisy[None], time[i], encoder_hidden_states=states[i : i + 1]).sample[0]
            snr = k / (1 - k)
            total += min(snr, 5.0) / (snr + 1) * float((got - velocity).square().mean()) / 3
        assert float(task(clean, noise, time, states)) == pytest.approx(total, rel=1e-4)


def test_the_reconstruction_loss_is_the_naive_one() -> None:
    torch.manual_seed(0)
    vae, clip = build_vae((8, 8, 8), 4).eval(), load_clip()
    images, noise = torch.rand(2, 3, 32, 32), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        posterior = vae.encode(images * 2 - 1).latent_dist
        rebuilt = (vae.decode(posterior.mean + posterior.std * noise).sample + 1) / 2
        error = float((rebuilt - images).abs().mean())
        variance = posterior.std**2
        divergence = float((posterior.mean**2 + variance - 1 - variance.log()).mean()) / 2
        task = ReconstructionTask(vae, clip, kl_weight=0.5, perceptual_weight=0.0)
        assert float(task(images, noise)) == pytest.approx(error + 0.5 * divergence, rel=1e-4)
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))

        def features(x: torch.Tensor) -> torch.Tensor:
            return clip.encode_image((x - mean.view(3, 1, 1)) / std.view(3, 1, 1), normalize=True)

        distance = 1 - float((features(images) * features(rebuilt)).sum(1).mean())
        task = ReconstructionTask(vae, clip, kl_weight=0.0, perceptual_weight=2.0)
        assert float(task(images, noise)) == pytest.approx(error + 2 * distance, rel=1e-3)
    assert not any("clip" in name for name, _ in task.named_parameters())


def test_what_is_drawn_follows_from_the_generator(tiny: DiffusionPretraining) -> None:
    trainer = DiffusionPretrainer(tiny)
    first, again = (trainer.drawer.draw(40, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.images_NCHW, again.images_NCHW)
    assert first.images_NCHW.shape == (40, 3, 32, 32)
    assert float(first.images_NCHW.min()) >= 0
    assert float(first.images_NCHW.max()) <= 1
    vocabulary = trainer.drawer._images.vocabulary
    domains = [vocabulary.concepts[c].domain for c in first.concept_N.tolist()]
    assert domains == [STYLE_DOMAINS[STYLES[s]] for s in first.style_N.tolist()]
    rows = trainer.texts.draw_rows(first.concept_N, first.style_N, torch.Generator().manual_seed(1), dropout=0.0)
    for row, concept, style in zip(rows.tolist(), first.concept_N.tolist(), first.style_N.tolist(), strict=True):
        names = vocabulary.concepts[concept].names
        wanted = {template.format(name) for template in STYLE_TEMPLATES[STYLES[style]] for name in names}
        assert trainer.texts.texts[row] in wanted
    dropped = trainer.texts.draw_rows(first.concept_N, first.style_N, torch.Generator().manual_seed(1), dropout=1.0)
    assert not dropped.any()
    assert trainer.texts.texts[0] == ""


@pytest.mark.slow
def test_resuming_changes_nothing(tiny: DiffusionPretraining, tmp_path: Path) -> None:
    undisturbed = DiffusionPretrainer(tiny)
    states = []
    while undisturbed.step < undisturbed.steps:
        undisturbed.train_step()
        if undisturbed.step in (1, 4):  # in the middle of each training
            torch.save(undisturbed.state(), tmp_path / f"{undisturbed.step}.pt")
            export_pipeline(undisturbed.vae, undisturbed.averaged_unet(), tmp_path / "export")
            states.append(undisturbed.step)
    assert (undisturbed.vae_steps, undisturbed.steps) == (2, 6)
    for step in states:
        resumed = DiffusionPretrainer(tiny)
        resumed.load(torch.load(tmp_path / f"{step}.pt", weights_only=True))
        while resumed.step < resumed.steps:
            resumed.train_step()
        for name, weight in undisturbed.average.items():
            assert torch.equal(weight, resumed.average[name]), name


def test_the_export_is_a_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, unet = build_vae((8, 8, 8), 4), build_unet((16, 16), 4, text_width=128, side=8)
    export_pipeline(vae, unet, tmp_path / "export")
    assert next(vae.parameters()).dtype == torch.float32  # what is trained on stays as it is
    pipeline = StableDiffusionPipeline.from_pretrained(str(tmp_path / "export"), safety_checker=None)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of a dog.", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 32, 32, 3)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train warns of its own use of Ray Data
@pytest.mark.usefixtures("ray_cluster")
def test_a_tiny_run_on_ray_train(tiny: DiffusionPretraining) -> None:
    result = diffusion_pretraining.pretrain(tiny)
    assert result.metrics is not None
    assert result.metrics["step"] == 6
    assert (diffusion_pretraining.export_path(tiny) / "unet" / "diffusion_pytorch_model.safetensors").is_file()
