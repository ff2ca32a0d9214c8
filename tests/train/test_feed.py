"""Training on pixels that stay in the store: what is read, in which order, and that nothing else changes.

Legend: N images, M images of a stream, S side in px.
"""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydapt.artefacts.pixels import PixelRows, StoredPixels, load_pixels
from raydapt.errors import UserError
from raydapt.methods.contract import Stream, TrainingImages, one_hot
from raydapt.settings.groups import TrainSettings
from raydapt.stages.reading import fixed_binary
from raydapt.store import artefact as artefact_
from raydapt.store.artefact import Artefact, Store
from raydapt.store.fingerprint import Recipe
from raydapt.train.feed import Feeds
from raydapt.train.place import WorkerContext
from raydapt.train.sampling import BlockOrder
from tests.train.test_loop import MemoryCheckpoints
from tests.train.toy import Toy, toy_images

SIDE = 4
ROW_BYTES = 3 * SIDE**2
GB = 1e-9
"""`cache_gb` of a byte."""


def pixels_in(
    store: Path | str, monkeypatch: pytest.MonkeyPatch, n: int, *, rows_of_group: int = 4
) -> tuple[Artefact, Tensor]:
    """An artefact of n random images in parts of 10, the first image in error; and the images."""
    monkeypatch.setattr(artefact_, "_GROUP_BYTES", rows_of_group * ROW_BYTES)
    pixel_N3SS = np.random.default_rng(n).integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8)
    pixel_N3SS[0] = 0
    recipe = Recipe(kind="pixels", settings={"image": {"size_px": SIDE}}, inputs=(str(n),))
    made = Store(str(store)).artefact_of(recipe)
    for part, start in enumerate(range(0, n, 10)):
        part_N3SS = pixel_N3SS[start : start + 10]
        valid = np.arange(start, start + len(part_N3SS)) > 0
        made.commit_part(part, pa.table({"pixel": fixed_binary(part_N3SS, valid)}))
    made.finish(recipe, range(-(-n // 10)), {}, {})
    return made, torch.from_numpy(pixel_N3SS)


@pytest.mark.parametrize("n", [7, 40, 53])
def test_stored_pixels_are_those_that_memory_would_hold(tmp_path, monkeypatch, n):
    made, pixel_N3SS = pixels_in(tmp_path, monkeypatch, n)
    stored = load_pixels(made, (n * ROW_BYTES - 1) * GB)
    assert isinstance(stored, StoredPixels)
    assert len(stored) == n
    assert torch.equal(load_pixels(made, n * ROW_BYTES * GB), pixel_N3SS)
    generator = torch.Generator().manual_seed(0)
    for row_M in (
        torch.arange(n),
        torch.randint(n, (30,), generator=generator),
        torch.tensor([n - 1]),
        torch.tensor([], dtype=torch.int64),
    ):
        assert torch.equal(stored[row_M], pixel_N3SS[row_M])
    blocks = [part * 3 + min(row // 4, 2) for part in range(-(-n // 10)) for row in range(min(10, n - 10 * part))]
    assert stored.block_of(torch.arange(n)).tolist() == blocks


def test_parts_of_earlier_releases_have_no_groups_and_are_read_too(tmp_path, monkeypatch):
    made, pixel_N3SS = pixels_in(tmp_path, monkeypatch, 33, rows_of_group=1000)
    monkeypatch.setattr(artefact_, "_GROUP_BYTES", 4 * ROW_BYTES)
    assert torch.equal(StoredPixels(made)[torch.arange(33)], pixel_N3SS)


def test_of_a_shard_no_more_is_read_than_the_groups_that_are_asked_for(tmp_path, monkeypatch):
    made, pixel_N3SS = pixels_in(tmp_path, monkeypatch, 20)
    shard, read = made.manifest.shards[1], list[list[int]]()
    groups = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, which, **kw: read.append(list(which)) or groups(self, which, **kw),
    )
    for start, stop in [(0, 4), (3, 5), (4, 8), (8, 10), (0, 10), (9, 10)]:
        table = made.read_rows(shard, start, stop, ["pixel"])
        wanted = pixel_N3SS[10 + start : 10 + stop].numpy().reshape(stop - start, -1)
        assert [list(value.as_py()) for value in table["pixel"]] == wanted.tolist()
    assert read == [[0], [0, 1], [1], [2], [0, 1, 2], [2]]


def test_a_damaged_part_is_set_aside_with_a_sentence(tmp_path, monkeypatch):
    made, _ = pixels_in(tmp_path, monkeypatch, 20)
    stored, file = StoredPixels(made), Path(made.folder.file(made.manifest.shards[1].name))
    data = bytearray(file.read_bytes())
    data[20] ^= 255
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"'part-00001\.parquet' of the stored pixels .* is damaged and was set aside"):
        stored[torch.tensor([15, 3, 10])]
    assert not file.exists()
    assert not made.complete()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    batch_size=st.integers(1, 12),
    window_images=st.integers(0, 20),
    world=st.integers(1, 3),
    steps=st.integers(1, 30),
)
def test_every_worker_reads_its_share_window_by_window(counts, batch_size, window_images, world, steps):
    """Against a naive simulation: windows are small and disjoint, and a pass shows no image twice."""
    block_M = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    n, share = len(block_M), -(-min(batch_size, len(block_M)) // world)
    orders = [
        BlockOrder(block_M, batch_size, window_images=window_images, seed=1, round_=2, name="s", rank=rank, world=world)
        for rank in range(world)
    ]
    per_pass = max(1, n // batch_size)
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(steps):
        for rank, order in enumerate(orders):
            (pass_, number), position_W = order.window(step)
            within_B = order.within(step)
            assert pass_ == step // per_pass
            assert len(position_W) <= max(share, window_images // share * share)
            assert len(within_B) == share
            assert order.next_window(step) > step
            after = min(order.next_window(step) - 1, steps - 1)
            assert order.window(after)[0] == (pass_, number)
            assert order.window(order.next_window(step))[0] != (pass_, number)
            seen.setdefault((pass_, rank), []).extend(position_W[within_B].tolist())
    if batch_size % world == 0 and n >= batch_size:
        for pass_ in range(steps // per_pass):
            shown = [position for rank in range(world) for position in seen[pass_, rank]]
            assert len(set(shown)) == len(shown) == per_pass * batch_size


def test_orders_follow_from_the_seed_and_differ_between_passes_and_rounds():
    block_M = torch.arange(60) // 4

    def drawn(seed: int = 0, round_: int = 1, pass_: int = 0) -> list[int]:
        order = BlockOrder(block_M, 5, window_images=20, seed=seed, round_=round_, name="s")
        steps = range(12 * pass_, 12 * pass_ + 12)
        return [place for step in steps for place in order.window(step)[1][order.within(step)].tolist()]

    assert drawn() == drawn()
    assert sorted(drawn()) == sorted(drawn(pass_=1)) == list(range(60))
    assert len({tuple(found) for found in (drawn(), drawn(seed=1), drawn(round_=2), drawn(pass_=1))}) == 4
    # A window of 20 images has five blocks, and they are mixed.
    assert len(set(block_M[torch.tensor(drawn()[:20])].tolist())) == 5
    assert len(set(block_M[torch.tensor(drawn()[:5])].tolist())) > 2


class PixelToy(Toy):
    """The toy on pixels; its streams are all images, and a few of them in another order."""

    input_kind = "pixels"

    def logits(self, image_B: Tensor) -> Tensor:
        return (image_B.flatten(1).float() / 255 - 0.5) @ self.weight_CD.T

    def forward(self, batches):
        few = batches["few"]
        loss = -(few.target_BC * self.logits(few.image_B).log_softmax(-1)).sum(-1).mean()
        noisy = batches["pseudo"]
        noisy = replace(noisy, image_B=noisy.image_B + torch.randint_like(noisy.image_B, 2))
        return loss - (noisy.target_BC * self.logits(noisy.image_B).log_softmax(-1)).sum(-1).mean()

    def begin_round(self, round_, over_unlabelled):
        index_F = torch.tensor([30, 3, 17, 9, 25, 1])
        few = Stream(name="few", index_M=index_F, target_MC=one_hot(index_F % 3, self.images.n_classes), batch_size=3)
        return [*super().begin_round(round_, over_unlabelled), few]


def images_with(pixels: StoredPixels | Tensor) -> TrainingImages:
    generator = torch.Generator().manual_seed(5)
    images = toy_images(n=40, width=ROW_BYTES)
    return replace(images, pixels=PixelRows(pixels, torch.randperm(len(pixels), generator=generator)[:40]))


def trained(pixels: StoredPixels | Tensor, cache_bytes: float, checkpoints: MemoryCheckpoints) -> PixelToy:
    from raydapt.train.loop import fit

    images = images_with(pixels)
    method = PixelToy(images)
    train = TrainSettings(
        epochs=3, learning_rate=0.1, checkpoint_every_s=0, predict_batch_size=7, cache_gb=cache_bytes * GB
    )
    fit(
        method,
        images,
        train,
        seed=1,
        place=WorkerContext(device=torch.device("cpu")),
        checkpoints=checkpoints,
        log=lambda line: None,
    )
    return method


@pytest.mark.slow
def test_streams_that_fit_are_learned_from_as_from_memory(tmp_path, monkeypatch):
    """The set is larger than the memory, as of 90 images, and each of the two streams has its half of that."""
    made, pixel_N3SS = pixels_in(tmp_path, monkeypatch, 91)
    from_memory = trained(pixel_N3SS, 0, MemoryCheckpoints())
    assert torch.equal(
        trained(StoredPixels(made), 90 * ROW_BYTES, MemoryCheckpoints()).weight_CD, from_memory.weight_CD
    )
    mixed_less = trained(StoredPixels(made), 40 * ROW_BYTES, MemoryCheckpoints())
    assert not torch.equal(mixed_less.weight_CD, from_memory.weight_CD)


def reading_threads():
    """Threads of pools; other tests of the process may have left some."""
    return {thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name}


@pytest.mark.slow
@pytest.mark.parametrize("die_after", range(1, 8))
def test_killed_and_resumed_within_a_window_gives_the_same_weights(tmp_path, monkeypatch, die_after):
    before = reading_threads()
    made, _ = pixels_in(tmp_path, monkeypatch, 60)
    stored, cache_bytes = StoredPixels(made), 48 * ROW_BYTES
    whole = trained(stored, cache_bytes, MemoryCheckpoints())
    killed = MemoryCheckpoints(die_after=die_after)
    with pytest.raises(KeyboardInterrupt):
        trained(stored, cache_bytes, killed)
    resumed = trained(stored, cache_bytes, MemoryCheckpoints(latest=killed.saved[-1]))
    assert torch.equal(whole.weight_CD, resumed.weight_CD)
    assert reading_threads() <= before


@pytest.mark.parametrize(("world", "batch_size"), [(1, 8), (2, 8), (3, 7)])
def test_a_worker_holds_two_windows_and_reads_its_share_once_a_pass(tmp_path, monkeypatch, world, batch_size):
    n, window = 120, 16
    made, pixel_N3SS = pixels_in(tmp_path, monkeypatch, n)
    read: dict[int, list[int]] = {rank: [] for rank in range(world)}
    take = StoredPixels.__getitem__
    images = replace(toy_images(n=n), pixels=PixelRows(StoredPixels(made), torch.arange(n)))
    stream = Stream(name="all", index_M=torch.arange(n), target_MC=torch.zeros(n, 3), batch_size=batch_size)
    steps = n // batch_size
    for rank in range(world):
        monkeypatch.setattr(
            StoredPixels,
            "__getitem__",
            lambda self, row_M, rank=rank: read[rank].append(len(row_M)) or take(self, row_M),
        )
        place = WorkerContext(device=torch.device("cpu"), rank=rank, world=world)
        train = TrainSettings(cache_gb=2 * window * ROW_BYTES * GB)
        feeds = Feeds([stream], images, "pixels", train, place, seed=0, round_=1, total=steps)
        for step in range(steps):
            batch = feeds.batches(step)["all"]
            assert torch.equal(batch.image_B, pixel_N3SS[batch.index_B])
            assert len(batch.index_B) == -(-batch_size // world)
        feeds.close()
    assert max(count for counts in read.values() for count in counts) <= window
    for rank in range(world):
        assert abs(sum(read[rank]) - n / world) <= window


def test_an_image_that_cannot_be_read_ends_the_training_with_its_sentence(tmp_path, monkeypatch):
    before = reading_threads()
    made, _ = pixels_in(tmp_path, monkeypatch, 60)
    stored = StoredPixels(made)
    Path(made.folder.file(made.manifest.shards[4].name)).unlink()
    with pytest.raises(UserError, match=r"'part-00004\.parquet' of the stored pixels"):
        trained(stored, 24 * ROW_BYTES, MemoryCheckpoints())
    assert reading_threads() <= before
