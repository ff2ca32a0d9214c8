"""Two workers of FAIR learn what one does where nothing is drawn, agree with each other, and resume bit for bit."""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raydapt.methods.fair import method as fair
from raydapt.models.views import whole_view
from raydapt.settings.groups import RaySettings
from raydapt.store.folder import Folder
from raydapt.train.checkpoint import Checkpoints, TrainState, from_bytes
from raydapt.train.loop import Log
from raydapt.train.place import WorkerContext
from raydapt.train.ray_train import train_on_workers
from tests.methods.test_fair import SETTINGS, TRAIN_SETTINGS, trained
from tests.models.tiny import tiny_clip

CASES = {
    "crops": replace(SETTINGS, layer_norms=False, alignment=0.5),
    "pixels": replace(SETTINGS, crops=0, alignment=0.5),
    "as it is": SETTINGS,
}
STILL = ("crops", "pixels")


class SharedCheckpoints:
    """As Ray Train's: every worker saves, the first alone with data, and all of them load what it saved."""

    def __init__(self, file: Path, *, die: bool = False) -> None:
        self.file, self.die = file, die

    def load(self) -> bytes | None:
        return self.file.read_bytes() if self.file.exists() else None

    def save(self, data, metrics):
        if data is not None:
            self.file.write_bytes(data)
        dist.barrier()
        if self.die:
            raise KeyboardInterrupt


def look_at_whole_images() -> None:
    """In place of the strong view, which every worker draws for its own images."""
    fair.strong_view = lambda pixel_B3PP, side_px, **_: whole_view(pixel_B3PP, side_px)


def work(rank: int, folder: str, case: str) -> None:
    torch.set_num_threads(1)
    if case in STILL:
        look_at_whole_images()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    place = WorkerContext(device=torch.device("cpu"), rank=rank, world=2)

    def learn(name: str, *, die: bool = False):
        checkpoints = SharedCheckpoints(Path(folder) / name, die=die)
        return trained(tiny_clip(), CASES[case], place=place, checkpoints=checkpoints)[0].state_dict()

    torch.save(learn("whole"), f"{folder}/whole-{rank}.pt")
    with pytest.raises(KeyboardInterrupt):
        learn("killed", die=True)
    torch.save(learn("killed"), f"{folder}/resumed-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_workers_agree_and_resume(tmp_path, case, monkeypatch):
    mp.spawn(work, args=(str(tmp_path), case), nprocs=2)
    names = ("whole-0", "whole-1", "resumed-0", "resumed-1")
    first, *others = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in names)
    for other in others:
        for name in first:
            assert torch.equal(first[name], other[name]), name
    if case in STILL:
        monkeypatch.setattr(fair, "strong_view", fair.strong_view)
        look_at_whole_images()
        alone = trained(tiny_clip(), CASES[case])[0].state_dict()
        for name, value in alone.items():
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)


class DyingOnce:
    """Checkpoints of Ray Train; at its first one the second worker is killed."""

    def __init__(self, checkpoints: Checkpoints, rank: int, mark: Path) -> None:
        self.checkpoints, self.rank, self.mark = checkpoints, rank, mark

    def load(self):
        return self.checkpoints.load()

    def save(self, data, metrics):
        self.checkpoints.save(data, metrics)
        if self.rank == 1 and not self.mark.exists():
            self.mark.write_text(f"{metrics['step']}")
            os.kill(os.getpid(), signal.SIGKILL)


def learn_on_ray(place: WorkerContext, checkpoints: Checkpoints, log: Log, *, mark: Path) -> TrainState:
    """What every worker of Ray Train does; the state is in its last checkpoint."""
    trained(tiny_clip(), CASES["crops"], place=place, checkpoints=DyingOnce(checkpoints, place.rank, mark))
    return TrainState()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray_train_resumes_and_ends_where_one_worker_does(tmp_path, ray_cluster):
    lines = []
    state = train_on_workers(
        partial(learn_on_ray, mark=tmp_path / "died"),
        replace(TRAIN_SETTINGS, workers=2, gpus_per_worker=0, max_failures=1),
        ray_settings=RaySettings(address="local", cpus=4, progress=False),
        storage=Folder(str(tmp_path / "ray_train"), setting="runs"),
        name="fair",
        log=lines.append,
    )
    assert (tmp_path / "died").read_text() == "2"  # of 4 steps
    assert state.finished
    assert [line["step"] for line in lines] == [2, 4]
    _, checkpoints = trained(tiny_clip(), CASES["crops"])
    for name, tensor in from_bytes(checkpoints.saved[-1]).method.items():
        torch.testing.assert_close(state.method[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
