"""A co-training small enough to be run many times, for the tests of Co-Reg."""

import torch
from torch import nn

from raydapt.artefacts.partial_labels import PartialLabels
from raydapt.artefacts.pixels import PixelRows
from raydapt.data.augment import Augmentation
from raydapt.methods.contract import TrainingImages
from raydapt.methods.coreg.method import CoReg
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.settings.groups import TrainSettings
from raydapt.train.loop import fit
from raydapt.train.place import WorkerContext

SIDE, CLASSES = 12, 3
SETTINGS = CoregSettings(
    student="mini",
    warmup_epochs=1,
    start_contrast=1,
    unlabelled_ramp=2,
    weak_views=2,
    strong_views=2,
    magnitude=5.0,
    cutout_px=4,
    crop_padding_px=1,
    queue=40,
    momentum=0.9,
    prototype_momentum=0.9,
)
TRAIN = TrainSettings(
    epochs=4, batch_size=8, learning_rate=0.05, weight_decay=0.0005, warmup_epochs=0, clip_grad_norm=0,
    checkpoint_every_s=0, predict_batch_size=7,
)  # fmt: skip
PLACE = WorkerContext(device=torch.device("cpu"))


def coreg_images(n=30, *, candidate_NC=None):
    """Images whose brightness tells their class, with candidate sets that hold it nine times out of ten."""
    generator = torch.Generator().manual_seed(0)
    class_N = torch.arange(n) % CLASSES
    pixel_N3SS = torch.randint(0, 80, (n, 3, SIDE, SIDE), generator=generator) + 80 * class_N.view(-1, 1, 1, 1)
    if candidate_NC is None:
        candidate_NC = (torch.rand(n, CLASSES, generator=generator) < 0.3).float()
        shown_N = torch.where(torch.rand(n, generator=generator) < 0.9, class_N, (class_N + 1) % CLASSES)
        candidate_NC[torch.arange(n), shown_N] = 1.0
    return TrainingImages(
        feature_ND=torch.zeros(n, 4),
        n_classes=CLASSES,
        labelled_L=torch.empty(0, dtype=torch.int64),
        label_L=torch.empty(0, dtype=torch.int64),
        unlabelled_U=torch.arange(n),
        candidate_classes=torch.arange(CLASSES),
        pixels=PixelRows(pixel_N3SS.to(torch.uint8), torch.arange(n)),
        partial=PartialLabels.of_block(candidate_NC, candidate_NC.softmax(-1)),
    )


def coreg_method(images, settings=SETTINGS, *, epochs=TRAIN.epochs, seed=1, still=False):
    """The method; `still` switches off all that depends on a worker: random views and batch norm."""
    view = Augmentation(
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
        padding_px=0 if still else settings.crop_padding_px, mirror=settings.mirror and not still,
        quarter_turns=settings.quarter_turns, magnitude=0.0 if still else settings.magnitude,
        cutout_px=0 if still else settings.cutout_px,
    )  # fmt: skip
    method = CoReg(settings, view, images, n_classes=CLASSES, epochs=epochs, batch_size=TRAIN.batch_size, seed=seed)
    if still:
        for students in (method.students, method.momentum):
            for i, student in enumerate(students):
                torch.manual_seed(seed + i)
                student.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 96))
                student.requires_grad_(students is method.students)
    return method


def train_coreg(checkpoints, images=None, settings=SETTINGS, train=TRAIN, *, seed=1, place=PLACE, still=False):
    """A trained method and its final state."""
    images = coreg_images() if images is None else images
    method = coreg_method(images, settings, epochs=train.epochs, seed=seed, still=still).to(place.device)
    state = fit(method, images, train, seed=seed, place=place, checkpoints=checkpoints, log=lambda line: None)
    return method, state
