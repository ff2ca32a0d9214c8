"""The job that trains the miniature CLIP: schedule, settings, batches, resuming, and a tiny run on Ray Train."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pretraining import clip_pretraining
from pretraining.clip_settings import ClipPretraining, read_settings
from pretraining.clip_trainer import Pretrainer, data_folder, domain_counts
from pretraining.pretraining_data import HELD_OUT_EVERY
from pretraining.training_state import rate_factor
from raydapt.errors import UserError


def write_parquet(file: Path, rows: list[tuple[list[str], str | None, str]], size_px: int) -> None:
    generator = np.random.default_rng(0)
    encoded = []
    for _ in rows:
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    texts, labels, sources = zip(*rows, strict=True)
    splits = ["train"] * len(rows)
    table = {"image": encoded, "text": texts, "label": labels, "split": splits, "source": sources}
    pq.write_table(pa.table({key: list(column) for key, column in table.items()}), file)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ClipPretraining:
    """A job over a few random images, with digits in the cache so that no fonts are needed."""
    root = tmp_path_factory.mktemp("zoo")
    pretrain, cache = root / "data" / "pretrain", root / "storage" / "cache"
    pretrain.mkdir(parents=True)
    cache.mkdir(parents=True)
    photos = [([name], name, "tiny-imagenet") for name in ("dog", "Chihuahua", "cat")] * 20
    write_parquet(pretrain / "photos.parquet", photos, 48)
    aerial = [(["river", "stream"], "river", "resisc12"), (["forest", "trees"], "forest", "rsscn7")] * 20
    write_parquet(pretrain / "aerial.parquet", aerial, 64)
    captions = [(["a dog runs .", "one brown dog ."], None, "flickr8k")] * 20
    write_parquet(pretrain / "flickr8k.parquet", captions, 48)
    faces = np.random.default_rng(1).integers(0, 256, (4, 10, 48, 48), dtype=np.uint8)
    np.save(cache / "digits-train.npy", faces)
    return ClipPretraining(
        data=str(root / "data"),
        storage=str(root / "storage"),
        name="tiny",
        samples=64,
        batch_size=16,
        vocabulary_size=320,
        photo_classes=2,
        warmup_share=0.25,
        workers=1,
        threads=1,
        log_every_steps=1,
    )


def test_the_rate_rises_stays_and_falls() -> None:
    factors = [rate_factor(done, warmup_share=0.1, decay_share=0.2) for done in (0.05, 0.1, 0.5, 0.8, 0.9, 1.0)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_domains_fill_the_batch() -> None:
    counts = domain_counts({"photos": 0.5, "aerial": 0.22, "digits": 0.18, "captions": 0.1}, 255)
    assert sum(counts.values()) == 255
    assert counts["aerial"] == 56


def test_the_committed_job_is_valid() -> None:
    job = Path(__file__).parents[2] / "pretraining" / "jobs" / "clip.yaml"
    settings = read_settings([str(job), "seed=7", "name=other"])
    assert (settings.seed, settings.name) == (7, "other")
    assert sum(settings.shares.values()) == pytest.approx(1.0)


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("sampels: 3\n")
    with pytest.raises(UserError, match="samples"):
        read_settings([str(job)])
    monkeypatch.delenv("RAYDAPT_DATA", raising=False)
    with pytest.raises(UserError, match="RAYDAPT_DATA"):
        data_folder(None)
    with pytest.raises(UserError, match="pretrain"):
        data_folder(str(tmp_path))


def test_a_batch_depends_on_seed_rank_and_step_alone(tiny: ClipPretraining) -> None:
    batches = Pretrainer(tiny).batches
    first, again, next_one = batches.make(3), batches.make(3), batches.make(4)
    assert torch.equal(first.images_NCHW, again.images_NCHW)
    assert torch.equal(first.class_tokens_KL, again.class_tokens_KL)
    assert not torch.equal(first.images_NCHW, next_one.images_NCHW)
    assert first.images_NCHW.shape == (16, 3, 32, 32)
    assert len(first.class_tokens_KL) == 2 + 2 + 10  # drawn photo classes, aerial classes, digits
    assert len(first.concept_N) + len(first.caption_tokens_JL) == 16
    assert int(first.concept_N.max()) < len(first.class_tokens_KL)


def test_held_out_photos_are_never_drawn(tiny: ClipPretraining) -> None:
    batches = Pretrainer(tiny).batches
    held_out_N = torch.from_numpy(batches.images.photos.held_out_N)
    assert int(held_out_N.sum()) == -(-60 // HELD_OUT_EVERY)
    assert float(batches._photo_weights[held_out_N].sum()) == 0.0


@pytest.mark.slow
def test_resuming_changes_nothing(tiny: ClipPretraining, tmp_path: Path) -> None:
    undisturbed, first = Pretrainer(tiny), Pretrainer(tiny)
    for _ in range(4):
        undisturbed.train_step()
    for _ in range(2):
        first.train_step()
    torch.save(first.state(), tmp_path / "state.pt")
    second = Pretrainer(dataclasses.replace(tiny))
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        second.train_step()
    assert second.step == 4
    for name, weight in undisturbed.average.items():
        assert torch.equal(weight, second.average[name]), name


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)  # two fits, each half a minute alone and minutes on a busy machine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train warns of its own use of Ray Data
@pytest.mark.usefixtures("ray_cluster")
def test_a_tiny_run_on_ray_train_and_its_continuation(tiny: ClipPretraining) -> None:
    result = clip_pretraining.pretrain(tiny)
    assert result.metrics is not None
    assert result.metrics["step"] == 4
    folder = clip_pretraining.export_path(tiny)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert open_clip.get_tokenizer(f"local-dir:{folder}")("a dog").shape == (1, 77)
    before = model.visual.conv1.weight.detach().clone()
    longer = clip_pretraining.pretrain(dataclasses.replace(tiny, samples=96))
    assert longer.metrics is not None
    assert longer.metrics["step"] == 6
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert not torch.equal(before, model.visual.conv1.weight)
