"""LoRA fine-tuning of the diffusion pipeline on confidently pseudo-labelled target images.

It runs where the methods' training runs: in this process or on Ray Train workers, with the same checkpoints. No label
is read: a caption names the class that the frozen CLIP is most sure of.

Legend: N images, M chosen images, C classes, B batch, S image side in px, h/w sides of the latent grid.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raydapt.cluster.joining import ensure_ray
from raydapt.errors import UserError
from raydapt.methods.class_prior import ClassPrior
from raydapt.models.diffusion_lora import (
    WEIGHTS_FILE,
    DenoisingWithAdapters,
    adapter_weights,
    add_adapters,
    encode_latents,
    lora_bytes,
)
from raydapt.models.pipelines import load_pipeline
from raydapt.settings.groups import LoraSettings, RaySettings, TrainSettings
from raydapt.store.artefact import StageResult, Store
from raydapt.store.environment import versions
from raydapt.store.fingerprint import Recipe
from raydapt.train.artefact_checkpoints import CHECKPOINT_FILE, ArtefactCheckpoints
from raydapt.train.checkpoint import Checkpoints, TrainState, from_bytes, optimizer_tensors, restore_optimizer, to_bytes
from raydapt.train.loop import Log
from raydapt.train.place import WorkerContext
from raydapt.train.ray_train import local_context, train_on_workers, trains_here
from raydapt.train.sampling import StreamOrder, seed_of, seed_torch

_CLIP_GRAD_NORM = 1.0
_WEIGHT_DECAY = 1e-2
"""Both of diffusers' own fine-tuning script."""
_LOG_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class ConfidentImages:
    """Images with the class that the frozen CLIP is most sure of."""

    row_M: Tensor
    """int64 rows of the features."""
    class_M: Tensor
    """int64 pseudo-labels."""


def confident_images(
    confidence_N: Tensor, class_N: Tensor, n_classes: int, images_per_class: int, prior: ClassPrior | None = None
) -> ConfidentImages:
    """The `images_per_class` images that each class wins with the highest probability; fewer where it wins fewer.

    With a known prior a class gets as many as its share allows, `images_per_class` on average.

    Args:
        confidence_N: Probability of every image's most probable class.
        class_N: int64, that class.
        n_classes: C.
        images_per_class: At most, or with a prior on average.
        prior: How often classes occur.
    """
    equal_C = torch.full((n_classes,), images_per_class)
    places_C = (prior.quotas(images_per_class) if prior is not None and prior.known else equal_C).tolist()
    rows = []
    for class_ in range(n_classes):
        won_N = (class_N == class_).nonzero().flatten()
        order_N = torch.argsort(confidence_N[won_N], descending=True, stable=True)
        rows.append(won_N[order_N[: places_C[class_]]])
    row_M = torch.cat(rows)
    return ConfidentImages(row_M=row_M, class_M=class_N[row_M])


@dataclass(frozen=True, kw_only=True)
class LoraJob:
    """One fine-tuning, as it is sent to every worker.

    Attributes:
        settings: How much is learned.
        pipeline: Name of the pipeline.
        captions: One per class.
        pixel_M3SS: uint8 pixels of the chosen images, of the pipeline's size.
        class_M: int64 pseudo-labels.
        seed: Decides everything random.
        checkpoint_every_s: Least time between two checkpoints.
    """

    settings: LoraSettings
    pipeline: str
    captions: tuple[str, ...]
    pixel_M3SS: Tensor
    class_M: Tensor
    seed: int
    checkpoint_every_s: float

    def __call__(self, place: WorkerContext, checkpoints: Checkpoints, log: Log) -> TrainState:
        """Trains the adapters; `TrainState.method` of the finished state holds them in diffusers' layout."""
        data = checkpoints.load()
        state = from_bytes(data) if data is not None else TrainState()
        if not state.finished:
            _Tuner(self, place, checkpoints, log, state).run()
        return state


class _Tuner:
    """What the steps of one fine-tuning share."""

    def __init__(
        self, job: LoraJob, place: WorkerContext, checkpoints: Checkpoints, log: Log, state: TrainState
    ) -> None:
        self.job, self.place, self.checkpoints, self.log, self.state = job, place, checkpoints, log, state
        settings = job.settings
        # Adapters are trained in single precision whatever the frozen weights are.
        self.pipeline = load_pipeline(job.pipeline, device="cpu").to(place.device)
        torch.manual_seed(seed_of(job.seed, "lora"))
        add_adapters(self.pipeline, rank=settings.rank, text_encoder=settings.text_encoder)
        self.task = DenoisingWithAdapters(self.pipeline, text_encoder=settings.text_encoder).train()
        self.mean_MChw, self.deviation_MChw = encode_latents(self.pipeline, job.pixel_M3SS)
        tokenizer = self.pipeline.tokenizer
        self.token_CL: Tensor = tokenizer(
            list(job.captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        self.learned = self.task.learned()
        self.optimizer = torch.optim.AdamW(self.learned.values(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY)
        self._restore()
        distributed = place.world > 1
        self.model = DistributedDataParallel(self.task, broadcast_buffers=False) if distributed else self.task

    def run(self) -> None:
        """Takes the steps that are left and leaves the state finished."""
        job, state = self.job, self.state
        order = StreamOrder(len(job.class_M), job.settings.batch_size, seed=job.seed, round_=1, name="lora")
        saved, losses = time.monotonic(), list[Tensor]()
        while state.step < job.settings.steps:
            started = time.perf_counter()
            losses.append(self._step(order))
            state.step += 1
            state.seconds += time.perf_counter() - started
            state.images += min(job.settings.batch_size, len(job.class_M))
            if state.step % _LOG_EVERY == 0 or state.step == job.settings.steps:
                self._note(losses)
                losses = []
            if self._due(saved):
                self._save()
                saved = time.monotonic()
        state.finished = True
        self._save()

    def _step(self, order: StreamOrder) -> Tensor:
        job, place = self.job, self.place
        seed_torch(seed_of(job.seed, "lora", self.state.step, place.rank), place.device)
        index_B = order.positions(self.state.step, rank=place.rank, world=place.world)
        clean = self.mean_MChw[index_B] + self.deviation_MChw[index_B] * torch.randn_like(self.mean_MChw[index_B])
        inputs = (
            clean,
            torch.randn_like(clean),
            torch.randint(self.task.times, (len(clean),)),
            self.token_CL[job.class_M[index_B]],
        )
        with self._amp():
            loss: Tensor = self.model(*(one.to(place.device) for one in inputs))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.learned.values(), _CLIP_GRAD_NORM)
        self.optimizer.step()
        return loss.detach()

    def _amp(self) -> AbstractContextManager[Any]:
        cuda = self.place.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()

    def _note(self, losses: Sequence[Tensor]) -> None:
        state = self.state
        line = {
            "time_s": state.seconds,
            "round": 1,
            "epoch": 1,
            "step": state.step,
            "loss": float(torch.stack(list(losses)).mean()),
            "learning_rate": self.job.settings.learning_rate,
            "images_per_s": state.images / max(state.seconds, 1e-9),
        }
        state.lines.append(line)
        if self.place.rank == 0:
            self.log(line)

    def _due(self, saved: float) -> bool:
        due = time.monotonic() - saved >= self.job.checkpoint_every_s
        if self.place.world > 1:  # the first worker's clock decides, so that all of them take part
            answer = torch.tensor([int(due)], device=self.place.device)
            dist.broadcast(answer, src=0)
            due = bool(answer.item())
        return due

    def _save(self) -> None:
        state, data = self.state, None
        if self.place.rank == 0:
            if state.finished:
                state.method = adapter_weights(self.pipeline, text_encoder=self.job.settings.text_encoder)
                state.optimizer = {}
            else:
                state.method = {name: one.detach().cpu() for name, one in self.learned.items()}
                state.optimizer = optimizer_tensors(self.optimizer)
            data = to_bytes(state)
        self.checkpoints.save(data, {"step": state.step, "finished": float(state.finished)})

    @torch.no_grad()
    def _restore(self) -> None:
        for name, tensor in self.state.method.items():
            self.learned[name].copy_(tensor)
        restore_optimizer(self.optimizer, self.state.optimizer)


def tune_lora(
    recipe: Recipe,
    job: LoraJob,
    *,
    train: TrainSettings,
    ray_settings: RaySettings,
    store: Store,
    log: Log = lambda line: None,
) -> StageResult:
    """Trains the adapters, or finds them in the store; a run that was killed is taken up at its last checkpoint.

    The artefact's folder also holds them as `pytorch_lora_weights.safetensors`, for diffusers.

    Raises:
        UserError: When no class has an image to learn from, or the cluster cannot place the workers.
    """
    artefact = store.artefact_of(recipe)
    if artefact.complete():
        return StageResult(artefact=artefact, reused=True)
    if not len(job.class_M):
        raise UserError("LoRA has no image to learn from: give images (data.source), or set lora.enabled=false.")
    with artefact.lock():
        if artefact.complete():
            return StageResult(artefact=artefact, reused=True)
        started = time.monotonic()
        checkpoints = ArtefactCheckpoints(artefact)
        if trains_here(train, ray_settings):
            state = job(local_context(train), checkpoints, log)
        else:
            ensure_ray(ray_settings)
            storage = artefact.folder.child("ray_train")
            state = train_on_workers(
                job, train, ray_settings=ray_settings, storage=storage, name=recipe.fingerprint, log=log
            )
        data = lora_bytes(state.method)
        artefact.folder.write(WEIGHTS_FILE, data)
        artefact.commit_part(
            0, pa.table({"row": [0], "file": [WEIGHTS_FILE], "content": pa.array([data], pa.binary())})
        )
        seconds = time.monotonic() - started
        stats = {
            "seconds": round(seconds, 3),
            "rows": len(job.class_M),
            "steps": state.step,
            "images_per_s": round(state.images / max(state.seconds, 1e-9), 3),
            "first_loss": state.lines[0]["loss"] if state.lines else None,
            "last_loss": state.lines[-1]["loss"] if state.lines else None,
            "classes": int(np.unique(job.class_M.numpy()).size),
        }
        artefact.finish(recipe, {0}, stats, versions())
        artefact.folder.remove(CHECKPOINT_FILE)
    return StageResult(artefact=artefact, reused=False)
