"""LatteCLIP on a tiny CLIP with captions written by hand."""

import dataclasses

import torch

from raydapt.artefacts.captions import captions_of
from raydapt.methods.latteclip.method import LatteClip
from raydapt.methods.latteclip.settings import LatteclipSettings
from raydapt.settings.groups import ModelSettings, TrainSettings
from raydapt.train.loop import fit
from raydapt.train.place import WorkerContext
from tests.methods.cases import CLASSES, training_images

PLACE = WorkerContext(device=torch.device("cpu"))
SETTINGS = LatteclipSettings(tune="ln", augmentation=False)
TRAIN = TrainSettings(
    epochs=2, batch_size=8, optimizer="adamw_clip", learning_rate=1e-3, weight_decay=0.2, warmup_epochs=0,
    clip_grad_norm=0, checkpoint_every_s=0, predict_batch_size=16,
)  # fmt: skip


def captions(n, kind, *, missing=3):
    """Sentences of the images; every `missing`-th has none, and many share one."""
    return [None if i % missing == 1 else f"a {kind} of thing number {i % 5}\nsecond line" for i in range(n)]


def captioned_images(clip, *, n=24, with_pixels=True):
    images = training_images(n=n, clip=clip, with_pixels=with_pixels)
    return dataclasses.replace(
        images, image_captions=captions_of(captions(n, "kind")), group_captions=captions_of(captions(n, "group"))
    )


def latteclip(clip, images, settings=SETTINGS, *, train=TRAIN, seed=0):
    model = ModelSettings(text_prompt_tokens=3, visual_prompt_tokens=2)
    lengths = {"epochs": train.epochs, "batch_size": train.batch_size}
    return LatteClip(clip, CLASSES, images, settings=settings, model=model, seed=seed, **lengths)


def train_latteclip(clip, checkpoints, settings=SETTINGS, *, images=None, train=TRAIN, place=PLACE, seed=0):
    images = captioned_images(clip) if images is None else images
    method = latteclip(clip, images, settings, train=train, seed=seed)
    fit(method, images, train, seed=seed, place=place, checkpoints=checkpoints, log=lambda line: None)
    return method
