import pytest
import torch

from raydapt.train.sampling import StreamOrder, seed_of, seed_torch, steps_per_epoch


def order(n: int, batch: int, **kwargs: object) -> StreamOrder:
    settings: dict = {"seed": 0, "round_": 1, "name": "pseudo"} | kwargs
    return StreamOrder(n, batch, **settings)


def test_an_epoch_sees_every_image_at_most_once() -> None:
    o = order(23, 5)
    seen = torch.cat([o.positions(step) for step in range(4)])
    assert len(seen) == 20
    assert len(set(seen.tolist())) == 20


def test_steps_can_be_asked_for_in_any_order() -> None:
    forwards = [order(23, 5).positions(step).tolist() for step in range(9)]
    o = order(23, 5)
    backwards = [o.positions(step).tolist() for step in reversed(range(9))][::-1]
    assert forwards == backwards


def test_passes_rounds_seeds_and_streams_differ() -> None:
    base = order(100, 100).positions(0).tolist()
    others = [
        order(100, 100).positions(1),
        order(100, 100, round_=2).positions(0),
        order(100, 100, seed=1).positions(0),
        order(100, 100, name="labelled").positions(0),
    ]
    assert all(other.tolist() != base for other in others)
    assert all(sorted(other.tolist()) == sorted(base) for other in others)


def test_workers_share_a_batch_evenly() -> None:
    for world in (2, 3, 4):
        parts = [order(23, 10).positions(1, rank=rank, world=world).tolist() for rank in range(world)]
        assert len({len(part) for part in parts}) == 1
        assert {position for part in parts for position in part} == set(order(23, 10).positions(1).tolist())


def test_one_image_and_many_workers() -> None:
    assert [order(1, 64).positions(5, rank=r, world=4).tolist() for r in range(4)] == [[0]] * 4
    assert steps_per_epoch(1, 64) == 1


def test_seed_is_the_same_on_every_machine() -> None:
    assert seed_of(0, 1, "pseudo") == seed_of(0, 1, "pseudo") != seed_of(0, 1, "labelled")
    assert 0 <= seed_of("x") < 2**63


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_seeding_one_device_gives_the_numbers_of_seeding_all(seed: int) -> None:
    torch.manual_seed(seed)
    expected = torch.rand(5), torch.randperm(9)
    seed_torch(seed, torch.device("cpu"))
    assert all(torch.equal(*pair) for pair in zip(expected, (torch.rand(5), torch.randperm(9)), strict=True))
