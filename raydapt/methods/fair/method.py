"""FAIR: class description anchors, local crops, the learned alignment score (WACV 2026, arXiv 2507.09615).

The abstract states the three parts; their details are a reconstruction, each of them a setting.

Legend: N training images, U unlabelled, B batch, C classes, M descriptions of all classes, K crops of an image,
D width, P stored side in px, S the model's side in px.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.artefacts.inputs import InputKind
from raydapt.data.classes import ClassSpace, fill_template
from raydapt.methods.contract import Batch, Method, OverImages, Stream, TrainingImages
from raydapt.methods.fair.rules import class_sums, composite, description_weights, fairness_loss, sample_weights
from raydapt.methods.fair.settings import FairSettings
from raydapt.methods.workers import gather_rows, gather_rows_with_gradients
from raydapt.models.clip import Clip
from raydapt.models.given_embeddings import GivenEmbeddings
from raydapt.models.tuned_norms import TunedNorms
from raydapt.models.views import crop_view, square_boxes, strong_view, whole_view

TRAIN = "train"
_TEST_SEED = 0
"""Of the crops that are scored at test time: the same places in every image."""


class Anchors(nn.Module):
    """Class description anchors: one learned vector per class, or one per description.

    Args:
        clip: The frozen model, whose text tower is used here and never again.
        classes: Names and templates; the templates' ensemble weighs the descriptions, or stands for them.
        settings: What describes a class, how descriptions are averaged, what is learned.
    """

    class_M: Tensor
    weight_M: Tensor

    def __init__(self, clip: Clip, classes: ClassSpace, settings: FairSettings) -> None:
        super().__init__()
        self.n_classes, self.per_class = len(classes.names), settings.anchors_per == "class"
        embedding_MD, class_M = described(clip, classes, settings)
        prompt_CD = clip.class_embeddings(classes.names, classes.templates)
        weight_M = description_weights(settings.anchor_mean, embedding_MD, class_M, prompt_CD)
        if self.per_class:
            embedding_MD = F.normalize(class_sums(weight_M[:, None] * embedding_MD, class_M, self.n_classes), dim=1)
        self.register_buffer("class_M", class_M, persistent=False)
        self.register_buffer("weight_M", weight_M, persistent=False)
        self.vector_MD = nn.Parameter(embedding_MD.clone(), requires_grad=settings.learn_anchors)

    def forward(self) -> Tensor:
        """The classifier [C, D]: normalised anchors, or their weighted mean over the descriptions of a class."""
        unit_MD = F.normalize(self.vector_MD.to(torch.float32), dim=1)
        return unit_MD if self.per_class else class_sums(self.weight_M[:, None] * unit_MD, self.class_M, self.n_classes)


class Fair(Method):
    """Self-training of the visual LayerNorms and of the anchors on pseudo-labels from crops, made anew in every step.

    Args:
        clip: The frozen model; never changed.
        classes: Names and templates.
        images: What may be learned from; None for a method that is only to predict.
        settings: Descriptions resolved.
        batch_size: Images per optimiser step over all workers.

    Attributes:
        target_C: Stated class shares that the fairness term asks for; None: equal ones.
    """

    prompt_CD: Tensor
    sum_CD: Tensor
    prototype_CD: Tensor
    predicted_C: Tensor

    def __init__(
        self,
        clip: Clip,
        classes: ClassSpace,
        images: TrainingImages | None,
        *,
        settings: FairSettings,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.settings, self.batch_size = settings, batch_size
        self.input_kind = input_kind_of(settings)
        self.tower = TunedNorms(clip, learn=settings.learns_norms)
        self.anchors = Anchors(clip, classes, settings)
        self.rounds = int(any(parameter.requires_grad for parameter in self.parameters()))
        self.scale = clip.logit_scale if settings.logit_scale == "model" else settings.logit_scale
        self._images = images
        self.target_C: Tensor | None = None
        prompt_CD = clip.class_embeddings(classes.names, classes.templates)
        self.register_buffer("prompt_CD", prompt_CD, persistent=False)
        # An epoch's image features, summed over pseudo-classes, and what the epoch before left as prototypes.
        self.register_buffer("sum_CD", torch.zeros_like(prompt_CD))
        self.register_buffer("prototype_CD", prompt_CD.clone())
        # How often the classes were predicted of late, for the fairness term.
        self.register_buffer("predicted_C", torch.full((len(prompt_CD),), 1 / len(prompt_CD), device=prompt_CD.device))
        self.register_load_state_dict_pre_hook(_begin_memory)  # type: ignore[no-untyped-call]

    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        """One stream of all unlabelled images; it carries no targets, since `forward` makes the pseudo-labels."""
        if self._images is None:
            raise RuntimeError("The method was built without training images, to predict only.")
        index_U = self._images.unlabelled_U.cpu()
        no_target = torch.zeros(len(index_U), 0)
        return [Stream(name=TRAIN, index_M=index_U, target_MC=no_target, batch_size=self.batch_size)]

    def begin_epoch(self, round_: int, epoch: int, over_images: OverImages) -> None:
        """Image prototypes of the last epoch's pseudo-classes; a class that had no image keeps its text (DPA)."""
        seen_C1 = self.sum_CD.abs().sum(dim=1, keepdim=True) > 0
        self.prototype_CD.copy_(torch.where(seen_C1, F.normalize(self.sum_CD, dim=1), self.prompt_CD))
        self.sum_CD.zero_()

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """mean[omega CE(strong view, pseudo-label)] + fairness + alignment, a reconstruction (arXiv 2507.09615)."""
        settings, image_B = self.settings, batches[TRAIN].image_B
        # Drawn whether there are crops or not, so that without crops everything else is drawn alike.
        crop_seed = int(torch.randint(2**62, ()))
        label_B, weight_B, whole_BD = self.pseudo_label(image_B, crop_seed)
        feature_BD = self._learned_view(image_B)
        with torch.autocast(feature_BD.device.type, enabled=False):
            anchor_CD = self.anchors()
            logits_BC = self.scale * feature_BD @ anchor_CD.T
            loss = (weight_B * F.cross_entropy(logits_BC, label_B, reduction="none")).mean()
            if settings.fairness:
                # Of the whole batch: a mean over the workers' own parts would ask every part to hold all classes.
                whole_BC = gather_rows_with_gradients(logits_BC)
                fairness, mean_C = fairness_loss(whole_BC, self.predicted_C, settings.fairness_memory, self.target_C)
                self.predicted_C.copy_(mean_C)
                loss = loss + settings.fairness * fairness
            if settings.alignment:
                # Of all workers in every step, so that the one checkpoint holds what each of them goes on with.
                self.sum_CD.index_add_(0, gather_rows(label_B), gather_rows(whole_BD))
                target_C = torch.arange(len(anchor_CD), device=anchor_CD.device)
                loss = loss + settings.alignment * F.cross_entropy(self.prototype_CD @ anchor_CD.T, target_C)
        return loss

    @torch.no_grad()
    def pseudo_label(self, image_B: Tensor, crop_seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """The current model's pseudo-labels int64 [B], their weights [B], and whole-image features [B, D].

        In single precision whatever the loss is computed in: half of it changes labels of images between two classes.
        """
        with torch.autocast(image_B.device.type, enabled=False):
            whole_BD, crop_BKD = self._whole_and_crops(image_B, crop_seed)
            seen_BD = whole_BD if self.settings.labels_from == "whole" else self._composite(whole_BD, crop_BKD)
            score_BC = self.scale * seen_BD @ self.anchors().T
            other_BC = self.scale * whole_BD @ self.prompt_CD.T
            weight_B = sample_weights(self.settings.weighting, score_BC, other_BC)
        return score_BC.argmax(dim=1), weight_B, whole_BD

    def logits(self, image_B: Tensor) -> Tensor:
        """Scores [B, C] of the whole image, or with `score_at_test` of the same crops of every image."""
        feature_BD = self._scored(image_B)
        with torch.autocast(feature_BD.device.type, enabled=False):
            logits_BC: Tensor = self.scale * feature_BD.to(torch.float32) @ self.anchors().T
        return logits_BC

    def read_features(self, image_B: Tensor) -> Tensor | None:
        """Those of the crops, where these are scored and the tower is as it was."""
        return self._scored(image_B) if self.input_kind == "crops" and self._scores_crops else None

    @property
    def _scores_crops(self) -> bool:
        return self.settings.score_at_test is True and self.settings.n_crops > 0

    def _scored(self, image_B: Tensor) -> Tensor:
        return self._composite(*self._whole_and_crops(image_B, None)) if self._scores_crops else self._whole(image_B)

    def _whole(self, image_B: Tensor) -> Tensor:
        """Features [B, D] of whole images, given as pixels [B, 3, P, P], features [B, D], or features with crops'."""
        if self.input_kind == "pixels":
            return self.tower.encode(whole_view(image_B, self.tower.clip.image_spec.size_px))
        return image_B[:, 0] if self.input_kind == "crops" else image_B

    def _whole_and_crops(self, image_B: Tensor, crop_seed: int | None) -> tuple[Tensor, Tensor]:
        """Features [B, D] and those of the crops [B, K, D]; without a seed, of the same places in all images."""
        settings, n_images = self.settings, len(image_B)
        whole_BD = self._whole(image_B)
        if self.input_kind == "crops":
            return whole_BD, image_B[:, 1 : 1 + settings.n_crops]
        if not settings.n_crops:
            return whole_BD, whole_BD[:, None][:, :0]
        generator = torch.Generator().manual_seed(_TEST_SEED if crop_seed is None else crop_seed)
        sides = (settings.crop_least_side, settings.crop_most_side)
        box_BK4 = square_boxes(1 if crop_seed is None else n_images, settings.n_crops, sides, generator)
        view = crop_view(image_B, box_BK4.expand(n_images, -1, -1), self.tower.clip.image_spec.size_px)
        return whole_BD, self.tower.encode(view).view(n_images, settings.n_crops, -1)

    def _composite(self, whole_BD: Tensor, crop_BKD: Tensor) -> Tensor:
        settings = self.settings
        return composite(whole_BD, crop_BKD, top_k=settings.top_k, temperature=settings.temperature)

    def _learned_view(self, image_B: Tensor) -> Tensor:
        """Features [B, D] to learn from: of a strong view, or where the tower stays as it is, of what is cached."""
        settings = self.settings
        if self.input_kind == "crops" and settings.cached_view == "crop":
            place_B = torch.randint(1, 1 + settings.n_crops, (len(image_B),))
            return image_B[torch.arange(len(image_B)), place_B.to(image_B.device)]
        if self.input_kind == "crops" and settings.cached_view == "composite":
            return self._composite(*self._whole_and_crops(image_B, None))
        if self.input_kind != "pixels":
            return self._whole(image_B)
        side = self.tower.clip.image_spec.size_px
        view = strong_view(
            image_B, side, least_area=settings.strong_area, flip=settings.flip, rand_augment=settings.rand_augment
        )
        return self.tower.encode(view)


def input_kind_of(settings: FairSettings) -> InputKind:
    """Pixels where the tower is learned; else what the frozen tower makes of images and crops, once."""
    if settings.learns_norms:
        return "pixels"
    return "crops" if settings.n_crops else "features"


def described(clip: Clip, classes: ClassSpace, settings: FairSettings) -> tuple[Tensor, Tensor]:
    """Embeddings [M, D] of what describes the classes, and the class of each, int64 [M].

    Where class embeddings stand for the model, these are all that the file has of a class.
    """
    if isinstance(clip, GivenEmbeddings):
        return clip.class_rows(classes.names)
    texts = texts_of(classes, settings)
    class_M = torch.tensor([c for c, of_class in enumerate(texts) for _ in of_class], device=clip.device)
    return clip.encode_text([text for of_class in texts for text in of_class]), class_M


def texts_of(classes: ClassSpace, settings: FairSettings) -> list[Sequence[str]]:
    """What describes each class: its descriptions, or its name in all templates."""
    if settings.anchor_text == "names":
        return [[fill_template(template, name) for template in classes.templates] for name in classes.names]
    if isinstance(settings.descriptions, str):
        raise ValueError("fair.descriptions are read before the method is built")
    return [settings.descriptions[name] for name in classes.names]


def _begin_memory(method: Fair, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Runs of earlier releases have no moving average of predictions; it begins anew, and nothing predicts with it."""
    state.setdefault(f"{prefix}predicted_C", method.predicted_C)
