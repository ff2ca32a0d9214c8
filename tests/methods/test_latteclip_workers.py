"""Two workers of LatteCLIP learn what one does."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raydapt.train.place import WorkerContext
from tests.methods.cases import tiny_clip
from tests.methods.latteclip_cases import SETTINGS, train_latteclip
from tests.methods.test_coreg_workers import NoCheckpoints

STILL = SETTINGS.__class__(tune="full", augmentation=False, use_batch_caption=False, alpha=0.1)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    place = WorkerContext(device=torch.device("cpu"), rank=rank, world=2)
    method = train_latteclip(tiny_clip(), NoCheckpoints(), STILL, place=place)
    torch.save(method.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_equal_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = train_latteclip(tiny_clip(), NoCheckpoints(), STILL)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True, msg=name)
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)
