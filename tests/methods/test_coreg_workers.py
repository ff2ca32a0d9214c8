"""Two workers of one co-training agree with each other, and with one worker where nothing random is in the way."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raydapt.train.place import WorkerContext
from tests.methods.coreg_cases import SETTINGS, train_coreg


class NoCheckpoints:
    def load(self):
        return None

    def save(self, data, metrics):
        pass


STILL = replace(SETTINGS, mixup=0.0)


def work(rank: int, folder: str, still: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    place = WorkerContext(device=torch.device("cpu"), rank=rank, world=2)
    method, _ = train_coreg(NoCheckpoints(), settings=STILL if still else SETTINGS, place=place, still=still)
    torch.save(method.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("still", [True, False], ids=["nothing random", "as it is"])
def test_two_workers_agree(tmp_path, still):
    mp.spawn(work, args=(str(tmp_path), still), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        if "running" not in name and "num_batches" not in name:  # each worker's batch norms see its own images
            assert torch.equal(first[name], second[name]), name
    if still:
        alone, _ = train_coreg(NoCheckpoints(), settings=STILL, still=True)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)
