"""A small network learns a set's own images without any label, as an artefact with checkpoints (SimCLR).

It runs where the methods' training runs: in this process or on Ray Train workers. Every random number follows from seed
and step, so that a training taken up at a checkpoint ends as one that was never stopped.

Legend: M images, B batch, S image side in px.
"""

import math
import time
from dataclasses import dataclass

import pyarrow as pa
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raydapt.cluster.joining import ensure_ray
from raydapt.models.self_supervised import SmallNet, contrast_loss
from raydapt.models.views import contrast_view
from raydapt.settings.groups import RaySettings, SecondSettings, TrainSettings
from raydapt.store.artefact import Artefact, StageResult, Store
from raydapt.store.environment import versions
from raydapt.store.fingerprint import Recipe
from raydapt.train.artefact_checkpoints import CHECKPOINT_FILE, ArtefactCheckpoints
from raydapt.train.checkpoint import Checkpoints, TrainState, from_bytes, optimizer_tensors, restore_optimizer, to_bytes
from raydapt.train.loop import Log
from raydapt.train.place import WorkerContext
from raydapt.train.ray_train import local_context, train_on_workers, trains_here
from raydapt.train.sampling import StreamOrder, seed_of, seed_torch

_WARMUP_STEPS = 50
_WEIGHT_DECAY = 1e-4
_LOG_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class SelfJob:
    """One training, as it is sent to every worker.

    Attributes:
        settings: How it is trained.
        n_images: Images that are adapted to, M.
        position_D: int64 places among them, ascending, of the D images that the steps draw (see `drawn`).
        pixel_D3SS: uint8 pixels of those.
        checkpoint_every_s: Least time between two checkpoints.
    """

    settings: SecondSettings
    n_images: int
    position_D: Tensor
    pixel_D3SS: Tensor
    checkpoint_every_s: float

    def __call__(self, place: WorkerContext, checkpoints: Checkpoints, log: Log) -> TrainState:
        """Trains the network; `TrainState.method` of the finished state holds it."""
        data = checkpoints.load()
        state = from_bytes(data) if data is not None else TrainState()
        if not state.finished:
            _Trainer(self, place, checkpoints, log, state).run()
        return state


def drawn(settings: SecondSettings, n_images: int) -> Tensor:
    """int64 places, ascending, of the images that a training's steps draw: of a large set no others are read."""
    if n_images <= settings.steps * settings.batch_size:
        return torch.arange(n_images)
    order, is_drawn_M = _order(settings, n_images), torch.zeros(n_images, dtype=torch.bool)
    for step in range(settings.steps):
        is_drawn_M[order.positions(step)] = True
    return is_drawn_M.nonzero().flatten()


def _order(settings: SecondSettings, n_images: int) -> StreamOrder:
    return StreamOrder(n_images, settings.batch_size, seed=settings.seed, round_=1, name="self")


class _Views(nn.Module):
    """Draws two views of each image and compares them, as one module that can be spread over workers."""

    def __init__(self, settings: SecondSettings) -> None:
        super().__init__()
        self.net, self.settings = SmallNet(), settings

    def forward(self, pixel_B3SS: Tensor) -> Tensor:
        settings, side_px = self.settings, pixel_B3SS.shape[-1]
        first, second = (
            contrast_view(pixel_B3SS, side_px, least_area=settings.least_area, flip=settings.mirror) for _ in range(2)
        )
        first_BP, second_BP = self.net.project(torch.cat([first, second])).chunk(2)
        return contrast_loss(first_BP, second_BP, settings.temperature)


class _Trainer:
    """What the steps of one training share."""

    def __init__(
        self, job: SelfJob, place: WorkerContext, checkpoints: Checkpoints, log: Log, state: TrainState
    ) -> None:
        self.job, self.place, self.checkpoints, self.log, self.state = job, place, checkpoints, log, state
        settings = job.settings
        torch.manual_seed(seed_of(settings.seed, "self"))
        self.task = _Views(settings).to(place.device).train()
        self.optimizer = torch.optim.AdamW(
            self.task.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY
        )
        if state.method:
            self.task.net.load_state_dict(state.method)
            restore_optimizer(self.optimizer, state.optimizer)
        self.model = DistributedDataParallel(self.task) if place.world > 1 else self.task

    def run(self) -> None:
        """Takes the steps that are left and leaves the state finished."""
        settings, state = self.job.settings, self.state
        order = _order(settings, self.job.n_images)
        saved = time.monotonic()
        while state.step < settings.steps:
            started = time.perf_counter()
            index_B = order.positions(state.step, rank=self.place.rank, world=self.place.world)
            loss = self._step(self.job.pixel_D3SS[torch.searchsorted(self.job.position_D, index_B)])
            state.step += 1
            state.seconds += time.perf_counter() - started
            state.images += min(settings.batch_size, self.job.n_images)
            if state.step % _LOG_EVERY == 0 or state.step == settings.steps:
                self._note(float(loss))
            # Workers take equally many steps, and a report is a barrier: with several, the steps decide, not a clock.
            due = time.monotonic() - saved >= self.job.checkpoint_every_s
            if due if self.place.world == 1 else state.step % _WARMUP_STEPS == 0:
                self._save()
                saved = time.monotonic()
        state.finished = True
        self._save()

    def _step(self, pixel_B3SS: Tensor) -> Tensor:
        settings, step = self.job.settings, self.state.step
        seed_torch(seed_of(settings.seed, "self", step, self.place.rank), self.place.device)
        rising = min(1.0, (step + 1) / _WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        loss: Tensor = self.model(pixel_B3SS.to(self.place.device))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def _note(self, loss: float) -> None:
        state = self.state
        line = {
            "time_s": state.seconds,
            "round": 1,
            "epoch": 1,
            "step": state.step,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_s": state.images / max(state.seconds, 1e-9),
        }
        state.lines.append(line)
        if self.place.rank == 0:
            self.log(line)

    def _save(self) -> None:
        state, data = self.state, None
        if self.place.rank == 0:
            state.method = {name: one.detach().cpu() for name, one in self.task.net.state_dict().items()}
            state.optimizer = {} if state.finished else optimizer_tensors(self.optimizer)
            data = to_bytes(state)
        self.checkpoints.save(data, {"step": state.step, "finished": float(state.finished)})


def train_self(
    recipe: Recipe,
    job: SelfJob,
    *,
    train: TrainSettings,
    ray_settings: RaySettings,
    store: Store,
    log: Log = lambda line: None,
) -> StageResult:
    """Trains the network, or finds it in the store; a run that was killed is taken up at its last checkpoint.

    Raises:
        UserError: When the cluster cannot place the workers.
    """
    artefact = store.artefact_of(recipe)
    with artefact.lock():
        if artefact.complete():
            return StageResult(artefact=artefact, reused=True)
        started = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            state = _trained(artefact, recipe, job, train, ray_settings, log)
            net = SmallNet()
        net.load_state_dict(state.method)
        mean_W = mean_feature(net.eval(), job.pixel_D3SS)
        data = save({**{name: one.contiguous() for name, one in state.method.items()}, "mean": mean_W})
        artefact.commit_part(0, pa.table({"row": [0], "content": pa.array([data], pa.binary())}))
        stats = {
            "seconds": round(time.monotonic() - started, 3),
            "rows": job.n_images,
            "steps": state.step,
            "images_per_s": round(state.images / max(state.seconds, 1e-9), 3),
            "first_loss": state.lines[0]["loss"],
            "last_loss": state.lines[-1]["loss"],
        }
        artefact.finish(recipe, {0}, stats, versions())
        artefact.folder.remove(CHECKPOINT_FILE)
    return StageResult(artefact=artefact, reused=False)


def _trained(
    artefact: Artefact, recipe: Recipe, job: SelfJob, train: TrainSettings, ray_settings: RaySettings, log: Log
) -> TrainState:
    if trains_here(train, ray_settings):
        return job(local_context(train), ArtefactCheckpoints(artefact), log)
    ensure_ray(ray_settings)
    storage = artefact.folder.child("ray_train")
    return train_on_workers(job, train, ray_settings=ray_settings, storage=storage, name=recipe.fingerprint, log=log)


@torch.inference_mode()
def mean_feature(net: SmallNet, pixel_M3SS: Tensor) -> Tensor:
    """The mean feature [W] of the images, which is taken off all features: all of them are positive."""
    sums = [net(part.to(torch.float32)).sum(dim=0) for part in torch.split(pixel_M3SS, 512)]
    return torch.stack(sums).sum(dim=0) / len(pixel_M3SS)
