"""Every kind of diffusion pipeline that is known: pictures that depend on number, prompt and guidance; LoRA files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save, save_file

from raydapt.errors import UserError
from raydapt.models.diffusion import ImageMaker, Sampling
from raydapt.models.diffusion_lora import WEIGHTS_FILE, apply_lora, read_lora
from raydapt.models.pipelines import (
    KINDS,
    denoiser_bytes,
    find_pipeline,
    grain_px,
    load_pipeline,
    native_size_px,
    pipeline_identity,
    require_trainable,
)
from tests.models.tiny_pipelines import TINY, build

OTHERS = [kind for kind in KINDS if kind != "StableDiffusionPipeline"]
SIDE_PX = dict.fromkeys(KINDS, 16) | {"SanaPipeline": 32}
WITH_LORA = [kind for kind in OTHERS if not kind.startswith("PixArt")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("pipelines")
    for kind in KINDS:
        build(kind).save_pretrained(place / kind)
    return place


def make(folder: Path, indices: list[int], prompt: str = "a photo of a dog.", **changes: object) -> np.ndarray:
    how = {"scheduler": "pipeline", "steps": 2, "guidance": 4.0, "negative_prompt": "", "seed": 0, "batch_size": 2,
           "size_px": SIDE_PX[folder.name]} | changes  # fmt: skip
    return ImageMaker(load_pipeline(str(folder)), Sampling(**how)).make(prompt, "dog", indices).astype(int)


def test_every_kind_has_a_pipeline_here() -> None:
    assert set(TINY) == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_pictures(folders: Path, kind: str) -> None:
    folder = folders / kind
    two = make(folder, [0, 1])
    assert two.shape == (2, SIDE_PX[kind], SIDE_PX[kind], 3)
    assert np.array_equal(make(folder, [1, 2])[0], two[1])
    assert np.array_equal(make(folder, [1])[0], make(folder, [1, 2])[0])
    assert two.std() > 1
    assert not np.array_equal(two[0], two[1])
    for changes in ({"prompt": "cat of photo"}, {"guidance": 8.0}, {"seed": 1}, {"steps": 3}):
        assert np.abs(make(folder, [0], **changes) - two[0]).max() > 0, changes
    # One step without guidance, as Turbo, schnell and Sprint want it.
    sampler = "lcm" if kind == "PixArtAlphaPipeline" else "pipeline"
    assert make(folder, [0], steps=1, guidance=0.0, scheduler=sampler).shape == two[:1].shape
    assert make(folder, [0], scheduler="dpm++").shape == two[:1].shape


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_a_picture_is_that_of_a_plain_call(folders: Path, kind: str) -> None:
    from raydapt.models.diffusion import image_seed

    ours = make(folders / kind, [3], batch_size=1)
    more = {"use_resolution_binning": False} if kind.startswith(("PixArt", "Sana")) else {}
    generator = torch.Generator().manual_seed(image_seed(0, "dog", 3))
    plain = load_pipeline(str(folders / kind))(
        "a photo of a dog.", num_inference_steps=2, guidance_scale=4.0, height=SIDE_PX[kind], width=SIDE_PX[kind],
        generator=generator,
        output_type="np", **more,
    ).images  # fmt: skip
    assert np.abs(ours - np.rint(plain * 255)).max() <= 1


@pytest.mark.parametrize("kind", OTHERS)
def test_negative_prompts_count_or_are_refused(folders: Path, kind: str) -> None:
    if kind in ("FluxPipeline", "LatentConsistencyModelPipeline"):
        with pytest.raises(UserError, match=rf"synthesis\.negative_prompt='cat' means nothing to a {kind}"):
            make(folders / kind, [0], negative_prompt="cat")
    else:
        assert not np.array_equal(make(folders / kind, [0], negative_prompt="cat"), make(folders / kind, [0]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_identity_are_told_by_the_folder(folders: Path, kind: str) -> None:
    name = str(folders / kind)
    assert native_size_px(name) == (
        256 if kind == "FluxPipeline" else SIDE_PX[kind]
    )  # 128 latents, twice as many pixels here
    patched = kind in ("StableDiffusion3Pipeline", "FluxPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline")
    assert grain_px(load_pipeline(name)) == (32 if kind == "SanaPipeline" else max(8, 4 if patched else 2))
    assert denoiser_bytes(name) > 0
    assert pipeline_identity(name) == pipeline_identity(name)
    assert len({pipeline_identity(str(folders / other)) for other in KINDS}) == len(KINDS)


def lora_of(kind: str) -> bytes:
    """A LoRA in diffusers' layout that is not zero."""
    pipeline = build(kind)
    part = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
    model = getattr(pipeline, part)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    return save({f"{part}.{name}": 5 * value.contiguous() for name, value in weights.items()})


def picture(pipeline: object, *, compile_denoiser: bool = False) -> np.ndarray:
    how = Sampling(scheduler="pipeline", steps=2, guidance=4.0, negative_prompt="", size_px=32, seed=0, batch_size=1)
    return ImageMaker(pipeline, how, compile_denoiser=compile_denoiser).make("a dog", "dog", [0]).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WITH_LORA)
def test_lora_files(folders: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(lora_of(kind))
    expected = load_pipeline(str(folders / kind))
    expected.load_lora_weights(str(tmp_path), weight_name=WEIGHTS_FILE)
    fused = load_pipeline(str(folders / kind))
    apply_lora(fused, read_lora(str(tmp_path), rank=2))
    assert np.abs(picture(fused) - picture(expected)).max() <= 1
    assert np.abs(picture(fused) - picture(load_pipeline(str(folders / kind)))).max() > 1
    other = next(one for one in WITH_LORA if (one == "FluxPipeline") != (kind == "FluxPipeline"))
    with pytest.raises(UserError, match="belong to another model"):
        apply_lora(load_pipeline(str(folders / kind)), lora_of(other))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's, of its own modules
@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"])
def test_compiled_pipelines_with_a_lora(folders: Path, kind: str) -> None:
    torch._dynamo.reset()
    data, pictures = lora_of(kind), []
    for fast in (False, True):
        pipeline = load_pipeline(str(folders / kind))
        apply_lora(pipeline, data)
        pictures.append(picture(pipeline, compile_denoiser=fast))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert np.abs(pictures[0] - picture(load_pipeline(str(folders / kind)))).max() > 1


@pytest.mark.parametrize("kind", ["PixArtSigmaPipeline"])
def test_kinds_without_lora_say_so(folders: Path, kind: str) -> None:
    with pytest.raises(UserError, match=f"reads no LoRA weights for a {kind}"):
        apply_lora(load_pipeline(str(folders / kind)), lora_of("SanaPipeline"))


def test_lora_files_by_other_names(folders: Path, tmp_path: Path) -> None:
    from safetensors.torch import load

    data = lora_of("StableDiffusionXLPipeline")
    (tmp_path / "style.safetensors").write_bytes(data)
    assert read_lora(str(tmp_path), rank=2) == read_lora(str(tmp_path / "style.safetensors"), rank=2) == data
    torch.save(load(data), tmp_path / "style.bin")
    read = load(read_lora(str(tmp_path / "style.bin"), rank=2))
    assert all(torch.equal(value, read[name]) for name, value in load(data).items())


@pytest.mark.parametrize("kind", OTHERS)
def test_learning_a_lora_of_another_kind_is_refused_at_once(folders: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"lora\.enabled=true learns a LoRA of a StableDiffusionPipeline"):
        require_trainable(str(folders / kind))
    require_trainable(str(folders / "StableDiffusionPipeline"))


def test_files_of_the_fp16_variant_alone(folders: Path, tmp_path: Path) -> None:
    tmp_path = tmp_path / "StableDiffusionXLPipeline"
    build("StableDiffusionXLPipeline").save_pretrained(tmp_path, variant="fp16")
    assert list(tmp_path.glob("unet/*.fp16.safetensors"))
    assert np.abs(make(tmp_path, [0]) - make(folders / "StableDiffusionXLPipeline", [0])).max() <= 1


def test_what_cannot_work_is_one_sentence(folders: Path, tmp_path: Path) -> None:
    pipeline = build("StableDiffusionPipeline")
    pipeline.save_pretrained(tmp_path / "inpainting")
    file = tmp_path / "inpainting/unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 9}))
    save_file({"a": torch.ones(1)}, tmp_path / "civitai.safetensors")
    with pytest.raises(UserError, match=r"synthesis\.scheduler=lcm"):
        make(folders / "PixArtAlphaPipeline", [0], steps=1)
    cases = {"inpainting": "takes 9 channels where noise has 4", "civitai.safetensors": "is a single file"}
    for name, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            find_pipeline(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_names_of_the_hub_in_the_cache_are_what_their_folders_are(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kinds = ("StableDiffusionXLPipeline", "FluxPipeline")
    for name, kind in (*((kind, kind) for kind in kinds), ("Kolors", "KolorsPipeline")):
        repository = tmp_path / f"models--org--{name}"
        snapshot = repository / "snapshots" / ("a" * 40)
        shutil.copytree(folders / (kind if kind in kinds else kinds[0]), snapshot)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("a" * 40)
        index = json.loads((snapshot / "model_index.json").read_text())
        (snapshot / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    for kind in kinds:
        assert find_pipeline(f"org/{kind}").kind == kind
        assert type(load_pipeline(f"org/{kind}")).__name__ == kind
    with pytest.raises(UserError, match="'org/Kolors' holds a KolorsPipeline, which was never tried here"):
        find_pipeline("org/Kolors")
    with pytest.raises(
        UserError, match=r"'org/none' cannot be loaded: it is not in the cache .*run `hf download org/none`"
    ):
        find_pipeline("org/none")
