"""One training, described small enough to send to any worker, and carried out where it arrives."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from raydapt.artefacts.answers import mean_answers
from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, Captions, captions_of, load_captions
from raydapt.artefacts.crops import load_crops
from raydapt.artefacts.features import load_vectors
from raydapt.artefacts.partial_labels import load_partial_labels
from raydapt.artefacts.pixels import PixelRows, load_pixels
from raydapt.artefacts.rows import rows_of
from raydapt.artefacts.second import KIND as SECOND
from raydapt.artefacts.second import load_second
from raydapt.artefacts.synthetic_images import SYNTHETIC, SyntheticImages, held_out_images, synthetic_images
from raydapt.data.classes import ClassSpace
from raydapt.data.splits import LabelSplit
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.spec import BuildContext
from raydapt.methods.table import spec_of
from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.models.frozen import load_frozen
from raydapt.settings.config import Config
from raydapt.store.artefact import Artefact
from raydapt.store.run_record import Run
from raydapt.train.checkpoint import Checkpoints, TrainState, from_bytes, to_bytes
from raydapt.train.loop import JudgeRound, Log, ScoreRound, fit
from raydapt.train.place import WorkerContext
from raydapt.train.rounds import round_guard
from raydapt.train.scoring import LabelFreeScorer, scorer_of

DIVISION = "division.safetensors"
CHECKPOINT = "checkpoint/state.safetensors"


class FileCheckpoints:
    """The latest checkpoint as one file of the run folder."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def load(self) -> bytes | None:
        """The file's bytes, None before the first checkpoint."""
        return self._run.read_bytes(CHECKPOINT) if self._run.exists(CHECKPOINT) else None

    def save(self, data: bytes | None, metrics: Mapping[str, float]) -> None:
        """Replaces the file as a whole."""
        if data is not None:
            self._run.write_bytes(CHECKPOINT, data)

    def save_state(self, state: TrainState) -> None:
        """Keeps the final state of a training that ran elsewhere."""
        self._run.write_bytes(CHECKPOINT, to_bytes(state))


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What a worker needs to begin. It holds no label: the labelled images stand in the run's division."""

    config: Config
    classes: ClassSpace
    run: Run
    artefacts: Mapping[str, Artefact]
    """What the method reads, by name; ``features`` always."""
    score_every_epoch: bool = False
    """Compute the label-free scores after each epoch, not after each round alone."""
    first_held_out: int | None = None
    """Number of the first synthetic image of a class that is kept for the scores; None: those after the method's."""

    def __call__(self, place: WorkerContext, checkpoints: Checkpoints, log: Log) -> TrainState:
        """Builds the method where it is called and trains it (see `raydapt.train.loop.fit`)."""
        if spec_of(self.config.method).fits_at_once:
            return self._fit_at_once(place.device, checkpoints)
        method, images = self.build(place.device)
        settings, before = self.config.train, torch.get_num_threads()
        # A step on cached features is many small operations: threads that wait for each other make it slower.
        torch.set_num_threads(max(1, before // place.world) if method.input_kind == "pixels" else 1)
        try:
            return fit(
                method,
                images,
                settings,
                seed=self.config.seed,
                place=place,
                checkpoints=checkpoints,
                log=log,
                examine=self._examine_rounds(self.scorer(method, images, place.device)),
                judge=self._round_guard(method, images, place),
            )
        finally:
            torch.set_num_threads(before)

    def _fit_at_once(self, device: torch.device, checkpoints: Checkpoints) -> TrainState:
        """Builds the method, which is all, or finds what an earlier attempt left."""
        if (stored := checkpoints.load()) is not None:
            return from_bytes(stored)
        started = time.monotonic()
        method, images = self.build(device)
        seconds = time.monotonic() - started
        state = {name: tensor.cpu() for name, tensor in method.state_dict().items()}
        done = TrainState(finished=True, seconds=seconds, images=len(images.unlabelled_U), method=state)
        checkpoints.save(to_bytes(done), {})
        return done

    def build(self, device: torch.device) -> tuple[Method, TrainingImages]:
        """The untrained method on a device, and the images it may see."""
        clip = load_frozen(self.config.data, self.config.model, device=str(device))
        images = self.images()
        context = BuildContext(config=self.config, clip=clip, classes=self.classes, images=images)
        return spec_of(self.config.method).build(context).to(device), images

    def scorer(
        self, method: Method, images: TrainingImages | None = None, device: torch.device | None = None
    ) -> LabelFreeScorer | None:
        """What gives a method its label-free scores; None where there are too few images."""
        images = images or self.images()
        clip = load_frozen(self.config.data, self.config.model, device=str(device or "cpu"))
        held_out, count = None, self.config.synthesis.held_out
        if count:
            first = (
                spec_of(self.config.method).synthetic_images(self.config)
                if self.first_held_out is None
                else self.first_held_out
            )
            cache_gb = self.config.train.cache_gb
            held_out = held_out_images(self.artefacts, self.classes.names, first, count, method.input_kind, cache_gb)
        return scorer_of(self.config, self.classes, clip, images, input_kind=method.input_kind, held_out=held_out)

    def _examine_rounds(self, scorer: LabelFreeScorer | None) -> ScoreRound | None:
        if scorer is None:
            return None
        return lambda method, over: scorer(method) if over or self.score_every_epoch else None

    def _round_guard(self, method: Method, images: TrainingImages, place: WorkerContext) -> JudgeRound | None:
        if method.rounds < 2 or place.rank:
            return None
        device, kind = place.device, method.input_kind
        return round_guard(self.config, self.zero_shot(device), images, input_kind=kind, device=device)

    def zero_shot(self, device: torch.device) -> Method:
        """The frozen model with the first template, which every method is compared with."""
        return zero_shot_of(self.config, self.classes, device)

    def images(self) -> TrainingImages:
        """Features (and pixels) of the training images, with the division of the run."""
        feature_AD, _ = load_vectors(self.artefacts["features"])
        tensors = load(self.run.read_bytes(DIVISION))
        row_N = torch.from_numpy(tensors["row"])
        pixels, crops = self.artefacts.get("pixels"), self.artefacts.get("crops")
        partial = self.artefacts.get("partial_labels")
        second = self.artefacts.get(SECOND)
        answer_AC = mean_answers(self.artefacts) if spec_of(self.config.method).reads_answers else None
        return TrainingImages(
            feature_ND=rows_of(feature_AD, row_N),
            n_classes=len(self.classes.names),
            labelled_L=torch.from_numpy(tensors["labelled"]),
            label_L=torch.from_numpy(tensors["label"]),
            unlabelled_U=torch.from_numpy(tensors["unlabelled"]),
            candidate_classes=torch.from_numpy(tensors["candidate_classes"]),
            pixels=None if pixels is None else PixelRows(load_pixels(pixels, self.config.train.cache_gb), row_N),
            crop_NKD=None if crops is None else load_crops(crops)[row_N],
            partial=None if partial is None else load_partial_labels(partial).rows(row_N),
            answer_NC=None if answer_AC is None else answer_AC[row_N],
            second_ND=None if second is None else rows_of(load_second(second), row_N),
            synthetic=synthetic_of(self.config, self.classes, self.artefacts),
            image_captions=captions_in(self.artefacts, IMAGE_CAPTIONS, row_N),
            group_captions=captions_in(self.artefacts, GROUP_CAPTIONS, row_N),
        )


def captions_in(artefacts: Mapping[str, Artefact], kind: str, row_N: Tensor) -> Captions | None:
    """The captions of the training images among the artefacts; None without them."""
    if kind not in artefacts:
        return None
    captions = load_captions(artefacts[kind])
    return captions_of([captions[row] for row in row_N.tolist()])


def synthetic_of(config: Config, classes: ClassSpace, artefacts: Mapping[str, Artefact]) -> SyntheticImages | None:
    """The synthetic images among the artefacts, with their features and pixels; None without them."""
    if SYNTHETIC not in artefacts:
        return None
    return synthetic_images(artefacts, classes.names, config.synthesis.samples_per_class, config.train.cache_gb)


def zero_shot_of(config: Config, classes: ClassSpace, device: torch.device) -> Method:
    """The frozen model with the first template."""
    clip = load_frozen(config.data, config.model, device=str(device))
    return ZeroShot(clip, clip.class_embeddings(classes.names, classes.templates[:1])).to(device)


def build_for_prediction(
    config: Config, classes: ClassSpace, device: torch.device, artefacts: Mapping[str, Artefact] | None = None
) -> Method:
    """A method without training images, to be given its learned state.

    Args:
        config: The settings.
        classes: What it is to tell apart, which need not be the classes that it learned from.
        device: Where to put it.
        artefacts: For a method that looks at synthetic images when it predicts.
    """
    clip, synthetic = (
        load_frozen(config.data, config.model, device=str(device)),
        synthetic_of(config, classes, artefacts or {}),
    )
    context = BuildContext(config=config, clip=clip, classes=classes, synthetic=synthetic)
    return spec_of(config.method).build(context).to(device)


def division_bytes(row_N: np.ndarray, division: LabelSplit, class_N: np.ndarray | None) -> bytes:
    """The division of the training images, with the labels of the labelled ones and no other.

    Args:
        row_N: int64 rows of the training images in the features artefact.
        division: Indices into the training images.
        class_N: int64 classes of the training images; None in UL, where nothing is labelled.
    """
    labelled_L = division.labelled_L
    label_L = np.empty(0, np.int64) if class_N is None else class_N[labelled_L]
    arrays = {
        "row": row_N,
        "labelled": labelled_L,
        "label": label_L,
        "unlabelled": division.unlabelled_U,
        "candidate_classes": np.asarray(division.candidate_classes),
    }
    return save({name: np.ascontiguousarray(array, dtype=np.int64) for name, array in arrays.items()})
