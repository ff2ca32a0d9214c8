"""Small adaptation problems on a tiny CLIP, for the tests of the methods."""

import numpy as np
import torch
from torch.nn import functional as F

from raydapt.artefacts.pixels import PixelRows
from raydapt.artefacts.synthetic_images import SyntheticImages
from raydapt.data.classes import ClassSpace
from raydapt.methods.contract import TrainingImages
from raydapt.methods.prompting.matching import WishLists
from raydapt.methods.spec import BuildContext
from raydapt.methods.table import GROUPS, setting_groups, spec_of
from raydapt.settings.config import Config
from tests.models.tiny import EMBED_DIM, pixels, tiny_clip

NAMES = ("cat", "annual crop land", "sea / lake", "fox")
CLASSES = ClassSpace(names=NAMES, labels=NAMES, templates=("a photo of a {}", "a drawing of {}"))


def build_method(config, clip, classes, images=None, synthetic=None):
    """The method of some settings, as training and prediction build it."""
    context = BuildContext(config=config, clip=clip, classes=classes, images=images, synthetic=synthetic)
    return spec_of(config.method).build(context)


def config_of(method, groups, **shared):
    """The settings of a method, of its own groups among some."""
    used = setting_groups(method, {"air": {"base": groups["air"].base}} if "air" in groups else {})
    return Config(method=method, own={name: groups.get(name) or GROUPS[name]() for name in used}, **shared)


def probabilities(n_images, n_classes, seed=0, *, ties=False):
    """Softmaxes with a preference for some classes; with `ties`, rounded so that many are equal."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(n_images, n_classes)) + generator.normal(size=n_classes)
    if ties:
        logits = np.round(logits)
    weights = np.exp(logits)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def mask_of(lists, n_classes):
    """Wish lists as a matrix [U, C] of what is on them."""
    mask = np.zeros((len(lists.size_U), n_classes), bool)
    owner, entry = lists.entries(np.arange(len(mask)))
    mask[owner, lists.class_E[entry]] = True
    return mask


def lists_of(probability, candidates):
    """Wish lists of the classes that a matrix [U, C] names."""
    size, order = candidates.sum(axis=1), np.argsort(-probability, axis=1, kind="stable")
    classes = order[np.take_along_axis(candidates, order, axis=1)]
    return WishLists(
        start_U=np.cumsum(size) - size,
        size_U=size,
        class_E=classes.astype(np.int32),
        probability_E=probability[np.repeat(np.arange(len(size)), size), classes],
    )


def over_unlabelled(method, images):
    """What the training loop gives a method: a function of the unlabelled images."""

    @torch.no_grad()
    def over(function):
        return function(images.take(images.unlabelled_U, method.input_kind))

    return over


def training_images(paradigm="ul", *, n=60, clip=None, with_pixels=False):
    """Images of a tiny CLIP (or random features), four classes; in TRZSL classes 1 and 3 are unseen."""
    pixel_N3SS = pixels(n)
    if clip is None:
        feature_ND = F.normalize(torch.randn(n, EMBED_DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    else:
        with torch.no_grad():
            feature_ND = clip.encode_image(pixel_N3SS)
    class_N = torch.arange(n) % 4
    is_labelled_N = {
        "ul": torch.zeros(n, dtype=torch.bool),
        "ssl": torch.arange(n) < 8,
        "trzsl": (class_N == 0) | (class_N == 2),
    }[paradigm]
    return TrainingImages(
        feature_ND=feature_ND,
        n_classes=4,
        labelled_L=torch.nonzero(is_labelled_N)[:, 0],
        label_L=class_N[is_labelled_N],
        unlabelled_U=torch.nonzero(~is_labelled_N)[:, 0],
        candidate_classes=torch.tensor([1, 3]) if paradigm == "trzsl" else torch.arange(4),
        pixels=PixelRows(pixel_N3SS, torch.arange(n)) if with_pixels else None,
    )


def synthetic_images(clip, *, per_class=6, with_pixels=False):
    """Images of the four classes that stand class by class, as a synthesis leaves them."""
    pixel_M3SS, class_M = pixels(4 * per_class, seed=5), torch.arange(4).repeat_interleave(per_class)
    pixel_M3SS = (pixel_M3SS // 2 + 32 * class_M[:, None, None, None]).to(torch.uint8)  # a brightness for each class
    with torch.no_grad():
        feature_MD = clip.encode_image(pixel_M3SS)
    rows = PixelRows(pixel_M3SS, torch.arange(len(class_M))) if with_pixels else None
    return SyntheticImages(feature_MD=feature_MD, class_M=class_M, pixels=rows)


__all__ = ["CLASSES", "NAMES", "probabilities", "synthetic_images", "tiny_clip", "training_images"]
