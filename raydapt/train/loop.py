"""The one training loop: drives every method, on one worker or many. Plain PyTorch; Ray stays outside.

Legend: N training images, U unlabelled, M images of a stream, B batch, C classes.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raydapt.errors import UserError
from raydapt.methods.contract import Batch, Method, TrainingImages
from raydapt.methods.guard import Verdict
from raydapt.settings.groups import TrainSettings
from raydapt.train import checkpoint as checkpoints_
from raydapt.train.checkpoint import AcceptedRound, Checkpoints, TrainState
from raydapt.train.feed import Feeds
from raydapt.train.optimizer import cosine_with_warmup, optimizer_of, scale_to_unit_length
from raydapt.train.place import WorkerContext
from raydapt.train.sampling import seed_of, seed_torch, steps_per_epoch
from raydapt.train.tally import Tally

# A clock is read, and on several workers agreed on, only this often.
_STEPS_BETWEEN_CLOCKS = 50

Log = Callable[[Mapping[str, Any]], None]
ScoreRound = Callable[[Method, bool], Mapping[str, float | None] | None]
"""Scores a method at the end of an epoch, told whether the round is over too; None is no score this time."""
JudgeRound = Callable[[Method], Verdict]
"""The guard's verdict on a method at the end of a round."""


def fit(
    method: Method,
    images: TrainingImages,
    settings: TrainSettings,
    *,
    seed: int,
    place: WorkerContext,
    checkpoints: Checkpoints,
    log: Log,
    examine: ScoreRound | None = None,
    judge: JudgeRound | None = None,
) -> TrainState:
    """Trains a method through all its rounds, from its latest checkpoint if there is one.

    Args:
        method: On `place.device`.
        images: What the method may see.
        settings: The training settings; `batch_size` counts images over all workers.
        seed: Decides, with round and step, the order of the images and every random number drawn.
        place: Rank and device; with more than one worker a process group must exist.
        checkpoints: Where the state is kept.
        log: Called about once an epoch on the first worker.
        examine: Called as often, on the first worker; its scores join the line of the log. It may draw no random
            number of torch's own.
        judge: Called on the first worker after each of several rounds. Where it rejects the last one, the weights of
            the last round that it accepts as it is are the final ones.

    Returns:
        The final state, `finished`. The method holds the final weights, on the first worker.
    """
    data = checkpoints.load()
    state = checkpoints_.from_bytes(data) if data is not None else TrainState()
    if state.method:
        method.load_state_dict(state.method)
    trainer = _Trainer(method, images, settings, seed, place, checkpoints, log, examine, judge, state)
    while state.round_ < method.rounds or (state.streams and not state.finished):
        trainer.run_round()
    if not state.finished:
        if trainer.rejected and (kept := state.accepted) is not None:
            method.load_state_dict(kept.method)
            state.kept_round = kept.round_
        state.finished = True
        trainer.save_checkpoint()
    return state


class _Trainer:
    """What the steps of one `fit` share."""

    def __init__(
        self,
        method: Method,
        images: TrainingImages,
        settings: TrainSettings,
        seed: int,
        place: WorkerContext,
        checkpoints: Checkpoints,
        log: Log,
        examine: ScoreRound | None,
        judge: JudgeRound | None,
        state: TrainState,
    ) -> None:
        self.method, self.images, self.settings, self.seed = method, images, settings, seed
        self.place, self.checkpoints, self.log, self.examine, self.state = place, checkpoints, log, examine, state
        self.judge = judge if method.rounds > 1 and place.rank == 0 else None
        self.rejected = False
        self.amp = _autocast(settings, place.device)
        learns = any(p.requires_grad for p in method.parameters())
        distributed = place.world > 1 and learns
        self.model = DistributedDataParallel(method, broadcast_buffers=False) if distributed else method
        self.last_checkpoint_s = time.monotonic()

    def run_round(self) -> None:
        """Runs the next round, or what is left of the one in progress."""
        state, method = self.state, self.method
        if not state.streams:
            state.round_ += 1
            state.step = 0
            state.optimizer = {}
            seed_torch(seed_of(self.seed, state.round_, "round"), self.place.device)
            streams = method.begin_round(state.round_, self._over_unlabelled)
            state.streams = [stream for stream in streams if len(stream.index_M)]
            if method.pseudo_labels is not None:
                state.history.append(method.pseudo_labels.kept)
        if state.streams:
            method.enter_round(state.round_, state.streams)
            optimizer = optimizer_of(method, self.settings)
            checkpoints_.restore_optimizer(optimizer, state.optimizer)
            self._steps(optimizer)
            method.end_round(state.round_)
            self._judge_round()
        state.streams = []
        state.optimizer = {}
        if state.round_ < method.rounds:
            self.save_checkpoint()

    def _judge_round(self) -> None:
        verdict = None if self.judge is None else self.judge(self.method)
        self.rejected = verdict == "zero-shot"
        if verdict == "adapted":
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.method.state_dict().items()}
            self.state.accepted = AcceptedRound(round_=self.state.round_, method=weights)

    def _steps(self, optimizer: torch.optim.Optimizer) -> None:
        state, settings = self.state, self.settings
        first = state.streams[0]
        per_epoch = steps_per_epoch(len(first.index_M), first.batch_size)
        total = int(min(per_epoch * settings.epochs, settings.max_steps_per_round or math.inf))
        warmup = min(round(settings.warmup_epochs * per_epoch), total // 2)
        span = per_epoch * settings.schedule_epochs if settings.schedule_epochs else total
        tally, kind, images = Tally(), self.method.input_kind, self.images
        feeds = Feeds(
            state.streams, images, kind, settings, self.place, seed=self.seed, round_=state.round_, total=total
        )
        with contextlib.closing(feeds):
            while state.step < total:
                if state.step % per_epoch == 0:
                    self.method.begin_epoch(state.round_, state.step // per_epoch + 1, self._over_images)
                for group in optimizer.param_groups:
                    share = cosine_with_warmup(state.step, total=span, warmup=warmup, final=settings.final_rate_share)
                    group["lr"] = settings.rate * share
                started = time.perf_counter()
                loss = self._step(optimizer, feeds)
                tally.add(loss, time.perf_counter() - started, min(first.batch_size, len(first.index_M)))
                state.step += 1
                self._after_step(optimizer, tally, loss, per_epoch=per_epoch, total=total)
        tally.move_to(state)

    def _after_step(
        self, optimizer: torch.optim.Optimizer, tally: Tally, loss: Tensor, *, per_epoch: int, total: int
    ) -> None:
        step = self.state.step
        end_of_epoch = step % per_epoch == 0 or step == total
        on_clock = end_of_epoch or step % _STEPS_BETWEEN_CLOCKS == 0
        if on_clock or loss.device.type == "cpu":  # elsewhere a look at a number waits for the device
            self._require_finite(tally)
        if on_clock:
            if end_of_epoch:
                epoch, rate = math.ceil(step / per_epoch), optimizer.param_groups[0]["lr"]
                self._log(tally, rate, epoch=epoch, over=step == total)
            self._checkpoint_when_due(optimizer, tally)

    def _step(self, optimizer: torch.optim.Optimizer, feeds: Feeds) -> Tensor:
        """One optimiser step over all streams; returns the loss, detached, on the device."""
        state, place = self.state, self.place
        # Re-seeding every step makes whatever a method draws a function of the step: resuming repeats it.
        seed_torch(seed_of(self.seed, state.round_, state.step, place.rank), place.device)
        self.method.train()
        batches = feeds.batches(state.step)
        optimizer.zero_grad(set_to_none=True)
        n_first = len(batches[state.streams[0].name].index_B)
        # Every part holds images of every stream: one without labelled images would weigh those of the others less.
        n_parts = min(self.settings.gradient_accumulation, *(len(batch.index_B) for batch in batches.values()))
        loss = torch.zeros((), device=place.device)
        for i, part in enumerate(_parts(batches, n_parts)):
            share = len(part[state.streams[0].name].index_B) / n_first
            with self._no_sync(last=i == n_parts - 1), self.amp():
                part_loss: Tensor = self.model(part) * share
                torch.autograd.backward(part_loss)
            loss += part_loss.detach()
        if self.settings.unit_gradient is True:
            scale_to_unit_length(self.method.parameters())
        elif self.settings.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.settings.clip_grad_norm)
        optimizer.step()
        self.method.after_step()
        return loss

    def _require_finite(self, tally: Tally) -> None:
        """Stops a training that has turned to NaN, before the state of it is kept."""
        steps_ago = tally.first_not_finite()
        if steps_ago is None:
            return
        state, settings = self.state, self.settings
        cooler = "" if settings.precision == "fp32" else ", or set train.precision=fp32"
        raise UserError(
            f"The loss is no finite number at step {state.step - steps_ago} of round {state.round_}: lower "
            f"train.learning_rate={settings.learning_rate:g}{cooler}, and run the command again."
        )

    def _no_sync(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _over_unlabelled(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of the unlabelled images; see `Method.begin_round`."""
        return self._gather(function, self.images.unlabelled_U)

    def _over_images(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of all training images; see `Method.begin_epoch`."""
        with self.amp():
            return self._gather(function, torch.arange(len(self.images.feature_ND)))

    def _gather(self, function: Callable[[Tensor], Tensor], index_M: Tensor) -> Tensor:
        place = self.place
        result = apply(
            self.method,
            lambda index_B: self.images.take(index_B, self.method.input_kind),
            index_M.tensor_split(place.world)[place.rank],
            batch_size=self.settings.predict_batch_size,
            device=place.device,
            function=function,
        )
        if place.world == 1:
            return result
        parts: list[Tensor] = [torch.empty(0)] * place.world
        dist.all_gather_object(parts, result)
        return torch.cat(parts)

    def _log(self, tally: Tally, learning_rate: float, *, epoch: int, over: bool) -> None:
        line: dict[str, Any] = {
            "time_s": self.state.seconds + tally.seconds,
            "round": self.state.round_,
            "epoch": epoch,
            "step": self.state.step,
            "loss": tally.mean_loss(),
            "learning_rate": learning_rate,
            "images_per_s": tally.images_per_s(),
        }
        if self.place.rank == 0 and self.examine is not None and (scores := self.examine(self.method, over)):
            line["scores"] = dict(scores)
        self.state.lines.append(line)
        if self.place.rank == 0:
            self.log(line)

    def _checkpoint_when_due(self, optimizer: torch.optim.Optimizer, tally: Tally) -> None:
        due = time.monotonic() - self.last_checkpoint_s >= self.settings.checkpoint_every_s
        if self.place.world > 1:
            # The first worker's clock decides, so that all of them take part.
            answer = torch.tensor([int(due)], device=self.place.device)
            dist.broadcast(answer, src=0)
            due = bool(answer.item())
        if due:
            tally.move_to(self.state)
            self.state.optimizer = checkpoints_.optimizer_tensors(optimizer)
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Writes the state; every worker must call it."""
        state = self.state
        data = None
        if self.place.rank == 0:
            state.method = {name: tensor.detach() for name, tensor in self.method.state_dict().items()}
            data = checkpoints_.to_bytes(state)
        scores = state.lines[-1].get("scores", {}) if state.lines else {}
        progress = {"round": state.round_, "step": state.step, "finished": float(state.finished)}
        self.checkpoints.save(data, progress | {name: score for name, score in scores.items() if score is not None})
        self.last_checkpoint_s = time.monotonic()


def predict(
    method: Method,
    images_of: Callable[[Tensor], Tensor],
    index_M: Tensor,
    *,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Softmax probabilities, float32 [M, C] on the CPU.

    Args:
        method: Any method, learned or not.
        images_of: Gives the images (features or pixels) of int64 indices.
        index_M: The images to predict.
        batch_size: Images at a time.
        device: Of the method.
    """
    return apply(
        method,
        images_of,
        index_M,
        batch_size=batch_size,
        device=device,
        function=lambda image_B: method.logits(image_B).softmax(-1).float(),
    )


@torch.no_grad()
def apply(
    method: Method,
    images_of: Callable[[Tensor], Tensor],
    index_M: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    function: Callable[[Tensor], Tensor],
) -> Tensor:
    """A function of images, with the method in evaluation mode; arguments as in `predict`."""
    was_training = method.training
    method.eval()
    result = torch.empty(0)
    for start in range(0, len(index_M), batch_size):
        part = function(images_of(index_M[start : start + batch_size]).to(device)).cpu()
        if start == 0:
            result = part.new_empty(len(index_M), *part.shape[1:])
        result[start : start + len(part)] = part
    method.train(was_training)
    return result


def _autocast(settings: TrainSettings, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[None]]:
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.precision == "bf16" or (settings.precision == "auto" and native):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext


def _parts(batches: Mapping[str, Batch], n_parts: int) -> Iterator[dict[str, Batch]]:
    """Cuts the batches of all streams into `n_parts` of nearly equal size."""
    if n_parts == 1:
        yield dict(batches)
        return
    for i in range(n_parts):
        yield {
            name: Batch(
                image_B=batch.image_B.tensor_split(n_parts)[i],
                target_BC=batch.target_BC.tensor_split(n_parts)[i],
                index_B=batch.index_B.tensor_split(n_parts)[i],
            )
            for name, batch in batches.items()
            if len(batch.index_B) >= n_parts or i < len(batch.index_B)
        }
