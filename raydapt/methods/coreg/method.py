"""Co-Reg: two students clean each other's noisy partial labels (AAAI 2025; public code where the paper is silent).

Phase A, warm-up: each student learns to put its probability on the candidates of an image.
Phase B, before each epoch: every student's losses divide the images for its partner into a partial split P, whose
candidates are believed, and an unlabelled split U. In each step both guess on weak views, and each learns the
co-pseudo-labels on strong ones, with prototypes and a contrast that distrusts U.

Ours: one stream deals out all images, with split and partner label looked up, instead of a loader per split and
student, so both students learn in the same step and an epoch is one pass; the division looks at the images as they are.

Legend: N training images, B batch, V views, C classes, D projected width, K keys, S side in px.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydapt.artefacts.inputs import InputKind
from raydapt.data.augment import Augmentation
from raydapt.methods.contract import Batch, Method, OverImages, PseudoLabels, Stream, TrainingImages
from raydapt.methods.coreg.candidates import Candidates, candidate_sets
from raydapt.methods.coreg.clean_noisy import align, clean_probability, division_loss
from raydapt.methods.coreg.losses import (
    Projections,
    consistency_loss,
    contrast_loss,
    move_prototypes,
    prototype_loss,
    sharpen,
    warmup_loss,
    within_candidates,
)
from raydapt.methods.coreg.memory import CoMemory
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.methods.workers import gather_rows, gather_rows_with_gradients, n_workers, share_running_statistics
from raydapt.models.feature_views import FeatureViews
from raydapt.models.students import FEATURE_STUDENTS, Student, update_ema

IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class StudentTargets:
    """What one student learns of one batch."""

    target_BC: Tensor
    partial_B: Tensor


class CoReg(Method):
    """Two students and their memory.

    Args:
        settings: Of the method.
        augmentation: How views are made.
        images: What may be learned from, with partial labels; None for a method that is only to predict.
        n_classes: C.
        epochs: Of the whole run.
        batch_size: Images per optimiser step over all workers.
        seed: Of the students' initial weights and of the mixture.
        width: Of the features, for students that take these.

    Attributes:
        expected_C: Class shares that alignment expects; equal ones until somebody sets others.
    """

    rounds = 1

    def __init__(
        self,
        settings: CoregSettings,
        augmentation: Augmentation | FeatureViews,
        images: TrainingImages | None,
        *,
        n_classes: int,
        epochs: int,
        batch_size: int,
        seed: int,
        width: int = 0,
    ) -> None:
        super().__init__()
        self.settings, self.augmentation, self.batch_size, self.seed = settings, augmentation, batch_size, seed
        self.input_kind = input_kind_of(settings)
        students = [_student(settings, n_classes, width, seed=seed, number=i) for i in (1, 2)]
        self.students = nn.ModuleList(students)
        self.step_outputs: list[dict[str, Tensor]] = []
        self.expected_C = torch.full((n_classes,), 1 / n_classes)
        if images is None:
            self.register_load_state_dict_pre_hook(_forget_training)  # type: ignore[no-untyped-call]
            return
        if images.partial is None:
            raise ValueError("Co-Reg learns from partial labels, but there are none.")
        self.momentum = copy.deepcopy(self.students).requires_grad_(False)
        co_epochs = epochs - settings.warmup_epochs
        self.candidates = Candidates(candidate_sets(images))
        self.memory = CoMemory(
            len(images.feature_ND), n_classes, places=self.candidates.places, queue=settings.queue, epochs=co_epochs
        )
        self._labelled_N = torch.zeros(len(images.feature_ND), dtype=torch.bool)
        self._labelled_N[images.labelled_L] = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CoReg:
        """Moves everything, as `to` asks, and what trains with the second student to the next GPU if it has its own."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = _as(self.students[0]).device
        if self.settings.gpu_per_student and device.type == "cuda" and hasattr(self, "momentum"):
            for students in (self.students, self.momentum):
                students[1].to(torch.device("cuda", (device.index or 0) + 1))
        return self

    def logits(self, image_B: Tensor) -> Tensor:
        """The sum of both students' logits [B, C] (section 2.3, inference)."""
        image = self.augmentation.plain(image_B)
        first, second = (_as(student).classify(image) for student in self.students)
        return (first + second).float()

    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        """All images with their candidates; there is one round."""
        candidate_NC = self.candidates.sparse()
        index_N = torch.arange(candidate_NC.shape[0])
        confidence_N, class_N = self.candidates.best()
        self.pseudo_labels = PseudoLabels(
            index_M=index_N, target_MC=candidate_NC, confidence_M=confidence_N, class_M=class_N
        )
        dealt_M = index_N.repeat(max(1, math.ceil(self.settings.epoch_images / len(index_N))))
        return [
            Stream(name=IMAGES, index_M=dealt_M, target_MC=torch.zeros(len(dealt_M), 0), batch_size=self.batch_size)
        ]

    def begin_epoch(self, round_: int, epoch: int, over_images: OverImages) -> None:
        """Divides the images anew once the warm-up is over."""
        self.memory.epoch.fill_(epoch)
        share_running_statistics(self.students)
        if epoch > self.settings.warmup_epochs:
            for copy_, student in zip(self.momentum, self.students, strict=True):
                update_ema(copy_, student, 0.0)  # as in the code, every epoch anew
            probability_N2C = over_images(self._probabilities)
            self.memory.trace(epoch - self.settings.warmup_epochs, epoch - 1, probability_N2C.argmax(2).T)
            self._divide(probability_N2C.transpose(0, 1))

    def end_round(self, round_: int) -> None:
        """What is kept has the statistics of all workers, not the first one's."""
        share_running_statistics(self.students)

    @property
    def _epoch(self) -> int:
        """1-based; part of the memory, so that a run that resumes within an epoch knows it."""
        return int(self.memory.epoch)

    def _probabilities(self, pixel_B3SS: Tensor) -> Tensor:
        image = self.augmentation.plain(pixel_B3SS)
        return torch.stack([_as(student).classify(image).float().softmax(-1) for student in self.students], 1)

    def _divide(self, probability_2NC: Tensor) -> None:
        """Phase B, 1 and 2: each student divides, and labels, for its partner."""
        settings = self.settings
        # Shares beside the expected ones: alignment divides by them, so that with equal ones it is the published one.
        expected_C = (len(self.expected_C) * self.expected_C).clamp_min(1e-6).to(probability_2NC)
        share_2C = probability_2NC.mean(1) / expected_C
        self.memory.share_2C.copy_(share_2C)
        if settings.distribution_alignment:
            probability_2NC = align(probability_2NC, share_2C[:, None])
        probability_2NK = self.candidates.of(probability_2NC)
        weight_NK = self.candidates.value_NK.cpu()
        loss_2N = torch.stack([division_loss(chosen_NK, weight_NK) for chosen_NK in probability_2NK])
        mean_2N = self.memory.remember_losses(loss_2N).cpu()
        for i in (0, 1):
            taught = 1 - i if settings.co_pseudo_labels else i
            clean_N = clean_probability(mean_2N[i], seed=self.seed).masked_fill(self._labelled_N, 1.0)
            self.memory.clean_2N[taught] = clean_N.to(self.memory.clean_2N)
            label_NK = within_candidates(probability_2NK[i], weight_NK)
            self.memory.label_2NK[taught] = label_NK.to(self.memory.label_2NK)

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """The sum of both students' losses."""
        batch = batches[IMAGES]
        if self._epoch <= self.settings.warmup_epochs:
            return self._warm_up(batch)
        return self._co_train(batch)

    def _warm_up(self, batch: Batch) -> Tensor:
        loss = batch.image_B.new_zeros((), dtype=torch.float32)
        candidate_BC = self.candidates.dense(batch.index_B.to(batch.image_B.device))
        views = _views(self.augmentation.strong, batch.image_B, len(self.students))
        for student, view in zip(self.students, views, strict=True):
            logits_BC, projected_BD = student(view)
            # Nothing is asked of the projector yet; with several workers every parameter must have a gradient.
            loss = loss + warmup_loss(logits_BC, candidate_BC) + 0.0 * projected_BD.sum()
        return loss

    def _co_train(self, batch: Batch) -> Tensor:
        settings = self.settings
        weak = _views(self.augmentation.weak, batch.image_B, settings.weak_views)
        strong = _views(self.augmentation.strong, batch.image_B, 2 * settings.strong_views)
        with torch.no_grad():
            partner_2BC = torch.stack([self._as_partner(student, weak) for student in self.students])
            guesses = [[student(view) for view in weak] for student in self.students]
            own_2BC = torch.stack(
                [torch.stack([logits.softmax(-1) for logits, _ in views]).mean(0) for views in guesses]
            )
        index_B = batch.index_B.to(batch.image_B.device)
        taught = [self._student_targets(i, index_B, _with_partner(i, own_2BC, partner_2BC)) for i in (0, 1)]
        contrast = settings.contrast != "none" and settings.contrast_weight > 0 and self._contrasts
        losses, news = [], []
        for i, student in enumerate(self.students):
            views = strong[i :: len(self.students)]
            loss, projected_VD = self._consistency(student, views, taught[i])
            keys = self._keys(i, views[1] if len(views) > 1 else weak[0], taught[i]) if contrast else None
            if keys is not None:
                # A mixed image has no class of its own: the contrast looks at the image itself.
                query_BD = student(views[0])[1] if settings.mixup else projected_VD[: len(index_B)]
                loss = loss + settings.contrast_weight * self._contrast(i, query_BD, taught[i], keys)
            losses.append(loss + 0.0 * projected_VD.sum())  # as in the warm-up: every parameter has a gradient
            news.append(self._step_outputs_of(guesses[i][0][1], taught[i], keys))
        self.step_outputs.append({name: torch.stack([new[name] for new in news]) for name in news[0]})
        return torch.stack(losses).sum()

    def _as_partner(self, student: nn.Module, weak: tuple[Tensor, ...]) -> Tensor:
        """What a student tells its partner, [B, C]: in evaluation mode, as the code has it.

        So it goes by its running statistics, and the batch does not move them. Of its own guesses it does.
        """
        was_training = student.training
        student.eval()
        guess_BC = torch.stack([_as(student).classify(view).float().softmax(-1) for view in weak]).mean(0)
        student.train(was_training)
        return guess_BC

    @property
    def _contrasts(self) -> bool:
        """Whether prototypes and contrast take part already."""
        return self._epoch > self.settings.warmup_epochs + self.settings.start_contrast

    @property
    def _unlabelled_weight(self) -> float:
        """Linear ramp over the first epochs of co-training (by epoch, where the code counts steps too)."""
        age = self._epoch - self.settings.warmup_epochs
        return self.settings.unlabelled_weight * min(1.0, age / max(1, self.settings.unlabelled_ramp))

    def _student_targets(self, i: int, index_B: Tensor, guess_2BC: Tensor) -> StudentTargets:
        """Phase B, 3: co-pseudo-labels of one student."""
        memory, settings = self.memory, self.settings
        if settings.align_guesses:
            guess_2BC = align(guess_2BC, memory.share_2C[:, None])
        clean_B = memory.clean_2N[i, index_B]
        partial_B = clean_B > settings.clean_threshold
        label_BC = self.candidates.dense(index_B, memory.label_2NK[i])
        refined_BC = clean_B[:, None] * label_BC + (1 - clean_B[:, None]) * guess_2BC[i]
        guess_BC = guess_2BC.mean(0) if settings.co_pseudo_labels else guess_2BC[i]
        taught_BC = torch.where(partial_B[:, None], refined_BC, guess_BC)
        return StudentTargets(target_BC=sharpen(taught_BC, settings.sharpening), partial_B=partial_B)

    def _consistency(
        self, student: nn.Module, views: tuple[Tensor, ...], taught: StudentTargets
    ) -> tuple[Tensor, Tensor]:
        """Phase B, 4: L_cr + lambda_1 L_prot, on mixed images where MixUp is on; and the projections [V B, D]."""
        settings, weight = self.settings, self._unlabelled_weight
        image = torch.cat(views)
        if image.dim() == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        target_VC, partial_V = taught.target_BC.repeat(len(views), 1), taught.partial_B.repeat(len(views))
        if settings.mixup:
            other_V = torch.randperm(len(image), device=image.device)
            share = float(torch.distributions.Beta(settings.mixup, settings.mixup).sample())
            share = max(share, 1 - share)  # the image's own split says which loss it gets
            image = share * image + (1 - share) * image[other_V]
            target_VC = share * target_VC + (1 - share) * target_VC[other_V]
        logits_VC, projected_VD = student(image)
        error = settings.unlabelled_error
        loss = consistency_loss(logits_VC, target_VC, partial_V, unlabelled_weight=weight, error=error)
        if settings.prototype_weight and self._contrasts:
            loss = loss + settings.prototype_weight * prototype_loss(
                projected_VD,
                self.memory.prototype_CD,
                target_VC,
                partial_V,
                temperature=settings.prototype_temperature,
                unlabelled_weight=settings.unlabelled_weight,  # without the ramp, as in the code
                error=error,
            )
        return loss, projected_VD

    @torch.no_grad()
    def _keys(self, i: int, view: Tensor, taught: StudentTargets) -> dict[str, Tensor]:
        """This step's keys of all workers, by the momentum copy."""
        _, key_BD = self.momentum[i](view)
        return {
            "key": gather_rows(key_BD),
            "class": gather_rows(taught.target_BC.argmax(1)),
            "partial": gather_rows(taught.partial_B.to(torch.uint8)).bool(),
        }

    def _contrast(self, i: int, query_BD: Tensor, taught: StudentTargets, new: dict[str, Tensor]) -> Tensor:
        key_QD, class_Q, partial_Q = self.memory.keys(i)
        world, settings = n_workers(), self.settings
        rank = torch.distributed.get_rank() if world > 1 else 0
        self_B = torch.arange(len(query_BD), device=query_BD.device) * world + rank
        # The batch's queries, its keys, the queue. Queries and keys of an image have the same class and split.
        return contrast_loss(
            Projections(query_BD, taught.target_BC.argmax(1), taught.partial_B),
            Projections(
                torch.cat([gather_rows_with_gradients(query_BD), new["key"], key_QD]),
                torch.cat([new["class"], new["class"], class_Q]),
                torch.cat([new["partial"], new["partial"], partial_Q]),
            ),
            self_B + len(new["key"]),
            self_B=self_B,
            temperature=settings.contrast_temperature,
            mode="sup" if settings.contrast == "sup" else "noisy",
            anchor_B=None if settings.unlabelled_weight else taught.partial_B,
        )

    @torch.no_grad()
    def _step_outputs_of(
        self, projected_BD: Tensor, taught: StudentTargets, keys: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """What the memory learns of a step, the same on every worker."""
        news = {} if keys is None else {f"key_{name}": value for name, value in keys.items()}
        return news | {
            "projected": gather_rows(projected_BD),
            "class": gather_rows(taught.target_BC.argmax(1)),
            "partial": gather_rows(taught.partial_B.to(torch.uint8)).bool(),
        }

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the momentum copies; the memory takes up the step's keys, and phase B, 5, its prototypes."""
        for copy_, student in zip(self.momentum, self.students, strict=True):
            update_ema(copy_, student, self.settings.momentum)
        memory, settings = self.memory, self.settings
        for news in self.step_outputs:
            for i in (0, 1):
                sure_B = news["partial"][i]
                memory.prototype_CD.copy_(
                    move_prototypes(
                        memory.prototype_CD,
                        news["projected"][i, sure_B],
                        news["class"][i, sure_B],
                        settings.prototype_momentum,
                    )
                )
            if "key_key" in news:
                memory.enqueue(news["key_key"], news["key_class"], news["key_partial"])
        self.step_outputs = []


def input_kind_of(settings: CoregSettings) -> InputKind:
    """Pixels, but for students that take features."""
    return "features" if settings.student in FEATURE_STUDENTS else "pixels"


def _student(settings: CoregSettings, n_classes: int, width: int, *, seed: int, number: int) -> Student:
    """One of the two students, with weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 2 + number)
        student = Student(
            settings.student, n_classes, pretrained=settings.pretrained, width=width, image_px=settings.image_size_px
        )
    moved: Student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _views(make: Callable[[Tensor], Tensor], image_B: Tensor, number: int) -> tuple[Tensor, ...]:
    """Several views of a batch, made in one go: an operation costs much the same for few images and for many."""
    return make(image_B.repeat(number, *[1] * (image_B.dim() - 1))).chunk(number)


def _with_partner(i: int, own_2BC: Tensor, partner_2BC: Tensor) -> Tensor:
    """The guesses [2, B, C] that student `i` learns from: its own, and what the other one tells."""
    return torch.stack([own_2BC[k] if k == i else partner_2BC[k] for k in (0, 1)])


def _as(student: nn.Module) -> Student:
    assert isinstance(student, Student)
    return student


def _forget_training(method: nn.Module, state: dict[str, Any], *_: object) -> None:
    """A method that is only to predict takes the students alone from a checkpoint."""
    for name in [name for name in state if not name.startswith("students.")]:
        del state[name]
