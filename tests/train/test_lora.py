"""LoRA fine-tuning: which images teach, that it learns, that an interrupted one ends the same, two workers."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raydapt.artefacts.lora import load_lora
from raydapt.errors import UserError
from raydapt.methods.class_prior import class_prior
from raydapt.settings.groups import LoraSettings, RaySettings, TrainSettings
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe
from raydapt.train.checkpoint import TrainState
from raydapt.train.lora import LoraJob, confident_images, tune_lora
from raydapt.train.place import WorkerContext
from tests.models.tiny_diffusion import save_tiny_pipeline, tiny_pipeline

SETTINGS = LoraSettings(rank=2, learning_rate=5e-3, steps=30, batch_size=4)
RAY = RaySettings(address="local", cpus=4, progress=False)


class Memory:
    """Checkpoints in memory; fails after so many saves."""

    def __init__(self, data: bytes | None = None, fail_after: int = 10**9) -> None:
        self.data, self.saves, self.fail_after = data, 0, fail_after

    def load(self) -> bytes | None:
        return self.data

    def save(self, data: bytes | None, metrics: Mapping[str, float]) -> None:
        self.data, self.saves = data, self.saves + 1
        if self.saves == self.fail_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> LoraJob:
    torch.set_num_threads(1)
    pixels = np.zeros((8, 3, 16, 16), np.uint8)
    pixels[4:] = 255
    return LoraJob(
        settings=SETTINGS,
        pipeline=save_tiny_pipeline(tmp_path_factory.mktemp("lora") / "tiny"),
        captions=("a photo of night.", "a photo of day."),
        pixel_M3SS=torch.from_numpy(pixels),
        class_M=torch.tensor([0] * 4 + [1] * 4),
        seed=0,
        checkpoint_every_s=0.0,
    )


def tune(job: LoraJob, checkpoints: Memory) -> TrainState:
    return job(WorkerContext(device=torch.device("cpu")), checkpoints, lambda line: None)


def test_a_stated_prior_says_how_many_images_of_a_class_teach() -> None:
    probability_NC = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    prior = class_prior({"a": "common", "b": "rare"}, ("a", "b", "c"))
    found = confident_images(*probability_NC.max(dim=1), 3, 7, prior)
    assert found.class_M.bincount(minlength=3).tolist() == prior.quotas(7).tolist() == [16, 1, 4]
    alone = confident_images(*probability_NC.max(dim=1), 3, 7, class_prior("unknown", ("a", "b", "c")))
    assert alone.row_M.tolist() == confident_images(*probability_NC.max(dim=1), 3, 7).row_M.tolist()


def test_confident_images_are_those_that_a_naive_loop_finds() -> None:
    torch.manual_seed(0)
    probability_NC = torch.rand(40, 5).softmax(1)
    probability_NC[:, 4] = 0.0  # a class that wins nothing
    found = confident_images(*probability_NC.max(dim=1), 5, 3)
    expected = []
    for c in range(5):
        won = [(float(p[c]), i) for i, p in enumerate(probability_NC) if int(p.argmax()) == c]
        expected += [(i, c) for _, i in sorted(won, key=lambda pair: (-pair[0], pair[1]))[:3]]
    assert list(zip(found.row_M.tolist(), found.class_M.tolist(), strict=True)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("text_encoder", [False, True])
def test_it_learns(job: LoraJob, text_encoder: bool) -> None:
    state = tune(replace(job, settings=replace(SETTINGS, steps=80, text_encoder=text_encoder)), Memory())
    assert state.finished
    assert state.lines[-1]["loss"] < 0.9 * state.lines[0]["loss"]
    assert any(name.startswith("text_encoder.") for name in state.method) == text_encoder


@pytest.mark.slow
def test_an_interrupted_one_ends_the_same(job: LoraJob) -> None:
    undisturbed = tune(job, Memory())
    checkpoints = Memory(fail_after=13)
    with pytest.raises(KeyboardInterrupt):
        tune(job, checkpoints)
    resumed = tune(job, Memory(checkpoints.data))
    assert resumed.step == undisturbed.step == 30
    for name, weight in undisturbed.method.items():
        assert torch.equal(weight, resumed.method[name]), name


@pytest.mark.slow
def test_the_artefact_is_made_once_and_read_by_diffusers(job: LoraJob, tmp_path: Path) -> None:
    store, recipe = Store(str(tmp_path)), Recipe(kind="lora", settings={}, inputs=("x",))
    train = TrainSettings(gpus_per_worker=0)
    first = tune_lora(recipe, job, train=train, ray_settings=RAY, store=store)
    assert not first.reused
    assert first.artefact.manifest.stats["steps"] == 30
    assert tune_lora(recipe, job, train=train, ray_settings=RAY, store=store).reused
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(first.artefact.folder.path)
    assert pipeline.get_active_adapters() == ["default_0"]
    assert load_lora(first.artefact) == first.artefact.folder.read("pytorch_lora_weights.safetensors")
    nothing = replace(job, pixel_M3SS=job.pixel_M3SS[:0], class_M=job.class_M[:0])
    with pytest.raises(UserError, match=r"no image to learn from.*lora\.enabled"):
        tune_lora(replace(recipe, inputs=("y",)), nothing, train=train, ray_settings=RAY, store=store)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_learn_one_lora(
    job: LoraJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raydapt.progress._SILENCE_S", 0.0)  # workers take longer than that
    monkeypatch.setattr(logging.getLogger("raydapt"), "propagate", True)
    caplog.set_level(logging.INFO, "raydapt")
    store, recipe = Store(str(tmp_path)), Recipe(kind="lora", settings={"workers": 2}, inputs=("x",))
    short = replace(job, settings=replace(SETTINGS, steps=6), checkpoint_every_s=1e9)
    train = TrainSettings(workers=2, gpus_per_worker=0)
    heard: list[int] = []
    result = tune_lora(
        recipe, short, train=train, ray_settings=RAY, store=store, log=lambda line: heard.append(line["step"])
    )
    assert "starting 2 Ray Train workers …" in caplog.messages
    assert heard == [6]  # from the first worker, and not again from the checkpoint
    assert result.artefact.manifest.stats["steps"] == 6
    assert len(load_lora(result.artefact)) > 0
