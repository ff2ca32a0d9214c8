"""Label-free scores of a method while it learns: what they are computed from, and when.

Legend: N training images, E examined images, H held-out synthetic images, C classes, B batch, D width, K neighbours or
crops, P stored side in px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.artefacts.inputs import InputKind
from raydapt.artefacts.synthetic_images import SyntheticImages
from raydapt.data.classes import ClassSpace
from raydapt.data.descriptions import check_descriptions, packaged_descriptions
from raydapt.errors import UserError
from raydapt.methods import scores
from raydapt.methods.air.rules import centred, class_weights
from raydapt.methods.class_prior import ClassPrior, class_prior
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.even_sample import even_sample
from raydapt.methods.table import spec_of
from raydapt.models.clip import Clip
from raydapt.models.views import crop_view, square_boxes
from raydapt.settings.config import Config

SCORES = (
    "synthetic_accuracy",
    "agreement",
    "cluster_agreement",
    "class_balance",
    "prior_match",
    "mutual_information",
    "neighbourhood_density",
    "calibrated_accuracy",
    "stability",
)
"""The scores, each None where there is nothing to compute it from."""
DECISIVE = ("synthetic_accuracy", "agreement", "prior_match", "cluster_agreement")
"""Those that a choice goes by, chosen on development sets (docs/trust.md). The others go by
how sure, smooth or evenly spread answers are, which is most so where classes died out or rare classes are overrated:
they are told only. `class_balance` decides only as `prior_match`, measured against a stated prior. The mutual
information, which counts it in, was decisive before 2026-11-26."""
MEAN = "mean"
"""The plain mean of the decisive ones, which guides a search while it runs."""

_MOST_IMAGES, _MOST_PIXELS = 2048, 512
_NEIGHBOURS = 10
_NOISE_SHARE = 0.5
_CROP_SIDES = (0.75, 0.95)
_HEAD_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class LabelFreeScorer:
    """Scores a method on some of its unlabelled training images, always the same ones in the same views."""

    images: TrainingImages
    index_E: Tensor
    """int64 indices into the training images, evenly spread."""
    heads: Mapping[str, Tensor]
    """The class, int64 [E], that each classifier gives which the method did not start from, by name."""
    neighbour_EK: Tensor
    """int64 positions among the examined images of those most like each one, by the frozen features."""
    cluster_E: Tensor
    """int64 cluster of each examined image, as many as there are classes, by the frozen features."""
    held_out: SyntheticImages | None
    """Synthetic images that nothing learns from."""
    batch_size: int
    device: torch.device
    prior: ClassPrior
    """How often classes occur, as far as anybody said."""

    def __call__(self, method: Method) -> dict[str, float | None]:
        """All scores, and the mean of those that a choice goes by."""
        return self.examine(method)[0]

    @torch.no_grad()
    def examine(self, method: Method) -> tuple[dict[str, float | None], Tensor]:
        """The scores, and the class int64 [E] that the method gives every examined image."""
        was_training = method.training
        method.eval()
        generator = torch.Generator().manual_seed(0)
        plain, viewed = [], []
        for index_B in torch.split(self.index_E, self.batch_size):
            image_B = self.images.take(index_B, method.input_kind)
            plain.append(self._answer(method, image_B))
            viewed.append(self._answer(method, self._view(image_B, method.input_kind, generator)))
        probability_EC, view_EC = torch.cat(plain), torch.cat(viewed)
        found: dict[str, float | None] = dict.fromkeys(SCORES)
        found |= self._of_answers(probability_EC, view_EC)
        if self.held_out is not None:
            found |= self._of_held_out(method, self.held_out, probability_EC)
        method.train(was_training)
        return found | {MEAN: scores.mean_of(found[name] for name in DECISIVE)}, probability_EC.argmax(dim=1)

    def _answer(self, method: Method, image_B: Tensor) -> Tensor:
        return method.logits(image_B.to(self.device)).softmax(-1).float().cpu()

    def _of_answers(self, probability_EC: Tensor, view_EC: Tensor) -> dict[str, float | None]:
        class_E, n_classes = probability_EC.argmax(dim=1), probability_EC.shape[1]
        vote_E = scores.neighbours_vote(probability_EC, self.neighbour_EK)
        others = [*self.heads.values(), vote_E]
        return {
            "agreement": scores.mean_of(scores.agreement(class_E, other_E, n_classes) for other_E in others),
            "cluster_agreement": scores.cluster_agreement(class_E, self.cluster_E),
            "class_balance": scores.class_balance(probability_EC),
            "prior_match": self.prior.balance(probability_EC.mean(dim=0)),
            "mutual_information": scores.mutual_information(probability_EC, self.prior.score_reference()),
            "neighbourhood_density": scores.neighbourhood_density(probability_EC),
            "stability": scores.agreement(class_E, view_EC.argmax(dim=1), n_classes),
        }

    def _of_held_out(self, method: Method, held_out: SyntheticImages, probability_EC: Tensor) -> dict[str, float]:
        parts = []
        for index_B in torch.split(torch.arange(len(held_out.class_M)), self.batch_size):
            if method.input_kind == "crops":  # an image that was not cut stands for its own crops
                n_stored = self.images.take(self.index_E[:1], "crops").shape[1]
                image_B = held_out.take(index_B, "features")[:, None].expand(-1, n_stored, -1)
            else:
                image_B = held_out.take(index_B, method.input_kind)
            parts.append(self._answer(method, image_B))
        best = torch.cat(parts).max(dim=1)
        right_H = best.indices == held_out.class_M
        confidence_E = probability_EC.max(dim=1).values
        return {
            "synthetic_accuracy": scores.accuracy(best.indices, held_out.class_M),
            "calibrated_accuracy": scores.calibrated_accuracy(best.values, right_H, confidence_E),
        }

    def _view(self, image_B: Tensor, input_kind: InputKind, generator: torch.Generator) -> Tensor:
        """Another view of the same images, for `stability`.

        Pixels: a square of 0.75 to 0.95 of the side. Crops: a random one of them in the place of the whole image.
        Features: noise of half the training images' own deviation, per dimension, since there is no image to cut.
        """
        if input_kind == "pixels":
            box_B14 = square_boxes(len(image_B), 1, _CROP_SIDES, generator)
            return crop_view(image_B, box_B14, image_B.shape[-1]).round().clamp(0, 255).to(torch.uint8)
        if input_kind == "crops" and image_B.shape[1] > 1:
            place_B = torch.randint(1, image_B.shape[1], (len(image_B),), generator=generator)
            crop_B1D = image_B[torch.arange(len(image_B)), place_B][:, None]
            return torch.cat([crop_B1D, image_B[:, 1:]], dim=1)
        noise = torch.randn(image_B.shape, generator=generator) * self.images.feature_ND[self.index_E].std(dim=0)
        return F.normalize(image_B + _NOISE_SHARE * noise, dim=-1)


def scorer_of(
    config: Config,
    classes: ClassSpace,
    clip: Clip,
    images: TrainingImages,
    *,
    input_kind: InputKind,
    held_out: SyntheticImages | None,
) -> LabelFreeScorer | None:
    """What the scores of a run are computed from; None where there are too few images for any.

    Args:
        config: The settings, resolved.
        classes: Names and templates.
        clip: The frozen model.
        images: What the method may see.
        input_kind: What the method takes for an image.
        held_out: Synthetic images that nothing learns from, if there are any.
    """
    index_U = images.unlabelled_U.cpu() if len(images.unlabelled_U) else torch.arange(len(images.feature_ND))
    if len(index_U) < 3:
        return None
    most = min(len(index_U), _MOST_IMAGES)
    # Of those that features are examined on, so that trials of both kinds have images in common.
    every = math.ceil(most / _MOST_PIXELS) if input_kind == "pixels" else 1
    index_E = even_sample(index_U, _MOST_IMAGES)[::every]
    feature_ED = images.feature_ND[index_E]
    return LabelFreeScorer(
        images=images,
        index_E=index_E,
        heads=_heads(config, classes, clip, feature_ED, held_out),
        neighbour_EK=scores.nearest_images(feature_ED, _NEIGHBOURS),
        cluster_E=scores.clusters(feature_ED, len(classes.names)),
        held_out=held_out,
        batch_size=config.train.predict_batch_size,
        device=clip.device,
        prior=class_prior(config.data.class_prior, classes.names),
    )


def _heads(
    config: Config, classes: ClassSpace, clip: Clip, feature_ED: Tensor, held_out: SyntheticImages | None
) -> dict[str, Tensor]:
    """Classifiers of the frozen features: plain prompt, descriptions, synthetic images; less the method's own start."""
    weights_CD = {"text": clip.class_embeddings(classes.names, classes.templates[:1]).cpu()}
    described = _descriptions(config, classes)
    if described is not None:
        weights_CD["descriptions"] = torch.stack([clip.encode_text(texts).mean(dim=0) for texts in described]).cpu()
    # To agree with what the method started from would be to agree with oneself.
    started_from = spec_of(config.method).starts_from(config) if described is not None else "text"
    del weights_CD[started_from]
    heads = {name: (feature_ED @ weight_CD.T).argmax(dim=1) for name, weight_CD in weights_CD.items()}
    if held_out is not None:
        made_MD, mean_D = held_out.feature_MD, held_out.feature_MD.mean(dim=0)
        weight_CD = class_weights(
            centred(made_MD, mean_D), held_out.class_M, len(classes.names), prototypes="nearest", nearest=_HEAD_IMAGES
        )
        heads["synthetic"] = (centred(feature_ED, feature_ED.mean(dim=0)) @ weight_CD.T).argmax(dim=1)
    return heads


def _descriptions(config: Config, classes: ClassSpace) -> list[list[str]] | None:
    """Descriptions of the classes: those that the job gives, or that come with a named set; None without any."""
    found = spec_of(config.method).descriptions(config) or packaged_descriptions(config.data.source)
    if found is None:
        return None
    try:
        checked = check_descriptions(found, classes.names, "the job")
    except UserError:  # the user gave other classes than the set's
        return None
    return [checked[name] for name in classes.names]
