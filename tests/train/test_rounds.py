"""Which round a training keeps, by the guard."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raydapt.methods.configuration import load_config
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.guard import judge
from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.settings.groups import TrainSettings
from raydapt.train.checkpoint import TrainState, from_bytes, to_bytes
from raydapt.train.loop import fit
from raydapt.train.place import WorkerContext
from raydapt.train.rounds import round_guard
from tests.clip_like import ClipLike, clip_like
from tests.train.test_loop import MemoryCheckpoints
from tests.train.toy import Toy, toy_images

PLACE = WorkerContext(device=torch.device("cpu"))
SETTINGS = TrainSettings(epochs=1, learning_rate=0.1, warmup_epochs=0, checkpoint_every_s=0)


A, M, Z = "adapted", "mean of both", "zero-shot"


def train(verdicts: str, checkpoints: MemoryCheckpoints, first: int = 1) -> tuple[Toy, TrainState, list[Tensor]]:
    """A training of a round for every verdict's letter, and the weights after each round that ran."""
    images, seen = toy_images(), []
    method = Toy(images, rounds=len(verdicts))

    def judge(method: Method) -> str:
        seen.append(method.weight_CD.detach().clone())
        return {"A": A, "M": M, "Z": Z}[verdicts[first - 2 + len(seen)]]

    state = fit(
        method, images, SETTINGS, seed=1, place=PLACE, checkpoints=checkpoints, log=lambda line: None, judge=judge
    )
    return method, state, seen


@pytest.mark.parametrize(
    ("verdicts", "kept"),
    [("AAZZ", 2), ("AZAZ", 3), ("AMMZ", 1), ("AAAA", None), ("AAZM", None), ("MMZZ", None), ("ZZZZ", None)],
)
def test_the_last_accepted_round_is_kept_where_the_last_one_is_rejected(verdicts: str, kept: int | None) -> None:
    checkpoints = MemoryCheckpoints()
    method, state, seen = train(verdicts, checkpoints)
    assert state.kept_round == kept
    assert torch.equal(method.weight_CD, seen[(kept or 4) - 1])
    stored = from_bytes(checkpoints.saved[-1])
    assert torch.equal(stored.method["weight_CD"], method.weight_CD)
    assert stored.kept_round == kept
    assert [line["round"] for line in state.lines] == [1, 2, 3, 4]  # all of them ran


@pytest.mark.parametrize("die_after", [1, 2, 3, 4, 5])
def test_killed_and_resumed_keeps_the_same_round(die_after: int) -> None:
    whole, *_ = train("AAZ", MemoryCheckpoints())
    killed = MemoryCheckpoints(die_after=die_after)
    with pytest.raises(KeyboardInterrupt):
        train("AAZ", killed)
    held = from_bytes(killed.saved[-1])
    resumed, state, _ = train("AAZ", MemoryCheckpoints(latest=killed.saved[-1]), first=_first(held))
    assert state.kept_round == 2
    assert torch.equal(resumed.weight_CD, whole.weight_CD)


def _first(held: TrainState) -> int:
    """The next round that will be judged: the one in progress, or the one behind it."""
    return held.round_ if held.streams else held.round_ + 1


def test_a_state_without_a_judged_round_has_none_in_its_bytes() -> None:
    assert from_bytes(to_bytes(TrainState())).accepted is None


def cases() -> tuple[TrainingImages, Callable[[Tensor], Method], Tensor]:
    drawn = clip_like(ClipLike(n_classes=6, per_class=30, zero_shot=0.7), 0)
    index_N = torch.arange(len(drawn.feature_ND))
    none = torch.empty(0, dtype=torch.int64)
    images = TrainingImages(
        feature_ND=drawn.feature_ND,
        n_classes=6,
        labelled_L=none,
        label_L=none,
        unlabelled_U=index_N[10:],
        candidate_classes=torch.arange(6),
    )
    clip = type("Scaled", (), {"logit_scale": drawn.scale, "device": torch.device("cpu")})()
    label_N = drawn.label_N
    mean_CD = torch.stack([drawn.feature_ND[label_N == c].mean(dim=0) for c in range(6)])

    def method(share: float) -> Method:
        """Zero-shot, moved along the class means; beyond 1 all answers are one class."""
        away_CD = mean_CD - drawn.feature_ND.mean(dim=0)
        return ZeroShot(
            clip, drawn.text_CD + (share * away_CD if share <= 1 else 10 * away_CD[:1] * torch.eye(6)[:, :1])
        )

    return images, method, drawn.feature_ND


def test_a_round_is_judged_as_the_run_is() -> None:
    images, method, feature_ND = cases()
    config, plain = load_config(None, ["method=cpl"]), method(0.0)
    verdict = round_guard(config, plain, images, input_kind="features", device=torch.device("cpu"))
    assert verdict is not None
    found = []
    for share in (0.0, 0.3, 2.0):
        zero_UC, adapted_UC = (one.logits(feature_ND[10:]).softmax(dim=1) for one in (plain, method(share)))
        found.append(verdict(method(share)))
        assert found[-1] == judge(zero_UC, adapted_UC, feature_ND[10:]).verdict
    assert found == [Z, A, Z]


@pytest.mark.parametrize("settings", [["guard=off"], ["data.paradigm=ssl"], ["method=zero_shot"]])
def test_rounds_are_not_judged_where_nothing_is_guarded(settings: list[str]) -> None:
    images, method, _ = cases()
    config = load_config(None, ["method=cpl", *settings])
    assert round_guard(config, method(0.0), images, input_kind="features", device=torch.device("cpu")) is None
    few = replace(images, unlabelled_U=torch.arange(1))
    config = load_config(None, ["method=cpl"])
    assert round_guard(config, method(0.0), few, input_kind="features", device=torch.device("cpu")) is None
