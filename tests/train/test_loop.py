import itertools
import math
from collections.abc import Mapping

import pytest
import torch

from raydapt.errors import UserError
from raydapt.methods.contract import Batch, Stream
from raydapt.settings.groups import TrainSettings
from raydapt.train.checkpoint import TrainState, from_bytes, to_bytes
from raydapt.train.loop import fit, predict
from raydapt.train.optimizer import cosine_with_warmup
from raydapt.train.place import WorkerContext
from tests.train.toy import Toy, toy_images

SETTINGS = TrainSettings(epochs=3, learning_rate=0.1, warmup_epochs=1.0, checkpoint_every_s=0, predict_batch_size=7)
PLACE = WorkerContext(device=torch.device("cpu"))


class MemoryCheckpoints:
    """Keeps every checkpoint; can play a process that is killed after so many of them."""

    def __init__(self, latest: bytes | None = None, die_after: int | None = None) -> None:
        self.saved: list[bytes] = [] if latest is None else [latest]
        self.die_after = die_after

    def load(self) -> bytes | None:
        return self.saved[-1] if self.saved else None

    def save(self, data: bytes | None, metrics: Mapping[str, float]) -> None:
        assert data is not None
        self.saved.append(data)
        if len(self.saved) == self.die_after:
            raise KeyboardInterrupt


def train(checkpoints: MemoryCheckpoints, settings: TrainSettings = SETTINGS, **kwargs: int) -> tuple[Toy, TrainState]:
    images = toy_images()
    method = Toy(images, **kwargs)
    state = fit(method, images, settings, seed=1, place=PLACE, checkpoints=checkpoints, log=lambda line: None)
    return method, state


def test_trains_every_round_and_epoch_once() -> None:
    method, state = train(MemoryCheckpoints())
    assert method.epochs == [(r, e) for r in (1, 2) for e in (1, 2, 3)]
    assert state.finished
    assert [len(labels.index_M) for labels in state.history] == [40, 40]
    assert [(line["round"], line["epoch"]) for line in state.lines] == method.epochs
    assert state.images == 2 * 3 * 5 * 8


@pytest.mark.parametrize("die_after", range(1, 8))
def test_killed_anywhere_and_resumed_gives_the_same_weights_bit_for_bit(die_after: int) -> None:
    whole, state = train(MemoryCheckpoints())
    killed = MemoryCheckpoints(die_after=die_after)
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    resumed, again = train(MemoryCheckpoints(latest=killed.saved[-1]))
    assert torch.equal(whole.weight_CD, resumed.weight_CD)
    keys = ("round", "epoch", "step", "loss", "learning_rate")
    assert [[line[k] for k in keys] for line in again.lines] == [[line[k] for k in keys] for line in state.lines]


def test_a_finished_training_has_nothing_left_to_do() -> None:
    first = MemoryCheckpoints()
    method, _ = train(first)
    again = MemoryCheckpoints(latest=first.saved[-1])
    resumed, _ = train(again)
    assert torch.equal(method.weight_CD, resumed.weight_CD)
    assert resumed.epochs == []
    assert len(again.saved) == 1


def test_gradient_accumulation_changes_memory_alone() -> None:
    class Still(Toy):
        def forward(self, batches):
            batch = batches["pseudo"]
            return -(batch.target_BC * self.logits(batch.image_B).log_softmax(-1)).sum(-1).mean()

    weights = []
    for parts in (1, 3, 8):
        images = toy_images()
        method = Still(images)
        settings = TrainSettings(epochs=2, learning_rate=0.1, gradient_accumulation=parts)
        fit(method, images, settings, seed=1, place=PLACE, checkpoints=MemoryCheckpoints(), log=lambda line: None)
        weights.append(method.weight_CD.detach())
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])


def test_a_round_without_pseudo_labels_is_passed_over() -> None:
    class Empty(Toy):
        def begin_round(self, round_, over_unlabelled):
            streams = super().begin_round(round_, over_unlabelled)
            none = torch.empty(0, dtype=torch.int64)
            return [type(s)(name=s.name, index_M=none, target_MC=s.target_MC[:0], batch_size=8) for s in streams]

    images = toy_images()
    state = fit(Empty(images), images, SETTINGS, seed=1, place=PLACE, checkpoints=MemoryCheckpoints(), log=print)
    assert state.finished
    assert state.images == 0


def test_fewer_images_than_a_batch_is_one_batch() -> None:
    _, state = train(MemoryCheckpoints(), batch_size=1000)
    assert state.images == 2 * 3 * 40


def test_max_steps_ends_a_round_and_spans_the_schedule() -> None:
    settings = TrainSettings(epochs=50, learning_rate=0.1, max_steps_per_round=7, warmup_epochs=0)
    _, state = train(MemoryCheckpoints(), settings)
    last = [line for line in state.lines if line["round"] == 1][-1]
    assert last["step"] == 7
    assert last["learning_rate"] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 6 / 7)))


def test_schedule_rises_then_falls() -> None:
    rates = [cosine_with_warmup(step, total=100, warmup=10) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001


def test_state_survives_its_bytes() -> None:
    killed = MemoryCheckpoints(die_after=2)
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    state = from_bytes(killed.saved[-1])
    same = from_bytes(to_bytes(state))
    for kept in (state.streams[0], same.streams[0], state.history[0], same.history[0]):
        assert kept.target_MC.sum(axis=1).tolist() == [1.0] * 40
        assert (kept.target_MC != state.streams[0].target_MC).nnz == 0
    assert state.optimizer.keys() == same.optimizer.keys() != set()
    assert state.lines == same.lines


def test_predict_equals_one_image_at_a_time() -> None:
    images = toy_images()
    method = Toy(images)
    index = torch.tensor([5, 3, 3, 39])
    together = predict(method, lambda i: images.take(i, "features"), index, batch_size=3, device=torch.device("cpu"))
    for row, i in zip(together, index, strict=True):
        torch.testing.assert_close(row, (images.feature_ND[i] @ method.weight_CD.T).softmax(-1))


def test_scores_join_the_log_and_change_nothing_that_is_learned() -> None:
    asked: list[bool] = []

    def examine(method: object, over: bool) -> dict[str, float | None] | None:
        asked.append(over)
        return {"agreement": 0.5, "stability": None} if over else None

    images = toy_images()
    method, checkpoints = Toy(images), MemoryCheckpoints()
    state = fit(
        method, images, SETTINGS, seed=1, place=PLACE, checkpoints=checkpoints, log=lambda line: None, examine=examine
    )
    assert asked == 2 * [False, False, True]
    assert [line.get("scores") for line in state.lines] == 2 * [None, None, {"agreement": 0.5, "stability": None}]
    assert from_bytes(to_bytes(state)).lines == state.lines
    assert torch.equal(method.weight_CD, train(MemoryCheckpoints())[0].weight_CD)


@pytest.mark.parametrize("bad_step", [0, 3])
def test_a_loss_that_is_no_number_stops_the_training_before_it_is_kept(bad_step: int) -> None:
    class Failing(Toy):
        steps = 0

        def forward(self, batches: Mapping[str, Batch]) -> torch.Tensor:
            self.steps += 1
            return super().forward(batches) * (math.nan if self.steps > bad_step else 1.0)

    images, checkpoints = toy_images(), MemoryCheckpoints()
    with pytest.raises(UserError, match=rf"at step {bad_step + 1} of round 1: lower train\.learning_rate"):
        fit(Failing(images), images, SETTINGS, seed=0, place=PLACE, checkpoints=checkpoints, log=lambda line: None)
    for data in checkpoints.saved:
        assert all(bool(tensor.isfinite().all()) for tensor in from_bytes(data).method.values())


def test_every_part_of_a_batch_holds_images_of_every_stream() -> None:
    class TwoStreams(Toy):
        def begin_round(self, round_, over_unlabelled):
            (first,) = super().begin_round(round_, over_unlabelled)
            return [first, Stream(name="few", index_M=first.index_M, target_MC=first.target_MC, batch_size=2)]

        def forward(self, batches):
            return sum(
                -(batch.target_BC * self.logits(batch.image_B).log_softmax(-1)).sum(-1).mean()
                for batch in batches.values()
            )

    weights = []
    for parts in (1, 2, 8):
        images = toy_images()
        method = TwoStreams(images)
        settings = TrainSettings(epochs=2, learning_rate=0.1, gradient_accumulation=parts)
        fit(method, images, settings, seed=1, place=PLACE, checkpoints=MemoryCheckpoints(), log=lambda line: None)
        weights.append(method.weight_CD.detach())
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])


def test_a_longer_schedule_ends_where_the_run_does() -> None:
    settings = TrainSettings(epochs=2, learning_rate=0.1, schedule_epochs=16, warmup_epochs=0, batch_size=10)
    _, state = train(MemoryCheckpoints(), settings)
    last = [line for line in state.lines if line["round"] == 1][-1]
    done = (last["step"] - 1) / (last["step"] * 16 / 2)
    assert last["learning_rate"] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * done)))


def test_a_round_is_ended_once_behind_its_last_step() -> None:
    calls: list[tuple[int, int]] = []

    class Ended(Toy):
        def end_round(self, round_: int) -> None:
            calls.append((round_, self.steps))

        def after_step(self) -> None:
            self.steps = getattr(self, "steps", 0) + 1

    images = toy_images()
    fit(
        Ended(images),
        images,
        TrainSettings(epochs=1, batch_size=10, learning_rate=0.1, warmup_epochs=0),
        seed=0,
        place=WorkerContext(device=torch.device("cpu")),
        checkpoints=MemoryCheckpoints(),
        log=lambda line: None,
    )
    assert calls == [(1, 5), (2, 10)]
