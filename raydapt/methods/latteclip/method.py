"""LatteCLIP: class prototypes fed by captions, and dual pseudo-labels that teach CLIP (WACV 2025, arXiv 2410.08211).

The rules are those of the authors' public code (``train_one_epoch_v2``) in the form that they intend: every sample has
its own text weights, every branch its own. Ours: what is learned may be less than the whole model, a branch that is off
has no part in the prototypes either, and the prototypes move behind the optimiser's step, which reads none of them.

Legend: N training images, B batch, C classes, D width, K text sources, T texts, U distinct texts of a batch, E epochs,
L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.artefacts.captions import Captions
from raydapt.artefacts.inputs import InputKind
from raydapt.data.classes import ClassSpace, fill_template
from raydapt.errors import UserError
from raydapt.methods.best_classes import best_classes
from raydapt.methods.contract import Batch, Method, OverImages, Stream, TrainingImages
from raydapt.methods.latteclip.group_draw import GroupDraw
from raydapt.methods.latteclip.rules import (
    contrastive_loss,
    legacy_mixture,
    mixture,
    moved_prototypes,
    targets,
    text_weight,
)
from raydapt.methods.latteclip.settings import LatteclipSettings
from raydapt.methods.workers import gather_rows_with_gradients, sum_over_workers
from raydapt.models.clip import Clip
from raydapt.models.prompts import TextPrompt, VisualPrompt
from raydapt.models.residual_prompt import ClassResidual
from raydapt.models.tuned_clip import TunedClip
from raydapt.models.views import light_view
from raydapt.settings.groups import ModelSettings

IMAGES = "images"
SOURCES = ("template", "image", "group")
_NO_CAPTIONS = Captions(texts=(), text_N=torch.empty(0, dtype=torch.int64))
_TEXTS_PER_CHUNK = 256


def input_kind_of(settings: LatteclipSettings) -> InputKind:
    """A text prompt and a residual learn from cached features; all else changes what becomes of pixels."""
    return "features" if settings.tune in ("text_prompt", "residual") else "pixels"


class LatteClip(Method):
    """Prototypes, what is learned of CLIP, and the texts of the images.

    Args:
        clip: The frozen model; never changed.
        classes: Names and templates; the first template is the prompt.
        images: What may be learned from; None for a method that is only to predict.
        settings: Of the method.
        model: Sizes of prompts.
        epochs: Of the run.
        batch_size: Images per optimiser step over all workers.
        seed: Of prompts and adapters.
    """

    rounds = 1
    prototype_CD: Tensor
    epoch_prototype_CD: Tensor
    start_CD: Tensor
    epoch: Tensor
    share_EK: Tensor
    drift_EC: Tensor

    def __init__(
        self,
        clip: Clip,
        classes: ClassSpace,
        images: TrainingImages | None,
        *,
        settings: LatteclipSettings,
        model: ModelSettings,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.settings, self.batch_size, self.input_kind = settings, batch_size, input_kind_of(settings)
        self._build_learner(clip, classes, model, seed)
        start_CD = clip.class_embeddings(classes.names, classes.templates[:1])
        self.register_buffer("start_CD", start_CD, persistent=False)
        self.register_buffer("prototype_CD", start_CD.clone())
        self.register_buffer("epoch_prototype_CD", start_CD.clone())
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        # What the report tells: sums of the sources' shares with their number behind them, and 1 - cosine to the start.
        self.register_buffer("share_EK", torch.zeros(epochs, len(SOURCES) + 1))
        self.register_buffer("drift_EC", torch.full((epochs, len(start_CD)), torch.nan))
        self._moves: list[Tensor] = []
        self._cached_TD: Tensor | None = None
        if images is not None:
            self._take_images(images, clip, classes)

    def _build_learner(self, clip: Clip, classes: ClassSpace, model: ModelSettings, seed: int) -> None:
        """What is learned: weights of a model of its own, or a prompt of the frozen one."""
        settings, self._frozen = self.settings, (clip,)
        self.towers: TunedClip | None = None
        self.text_prompt: TextPrompt | ClassResidual | None = None
        self.visual_prompt: VisualPrompt | None = None
        if settings.tune == "text_prompt":
            n_tokens, size = model.text_prompt_tokens, model.classes_per_chunk
            self.text_prompt = TextPrompt(clip, classes.names, n_tokens=n_tokens, classes_per_chunk=size, seed=seed)
        elif settings.tune == "residual":
            start_CD = clip.class_embeddings(classes.names, classes.templates[:1])
            self.text_prompt = ClassResidual(clip, start_CD, scale=model.residual_scale)
        elif settings.tune == "visual_prompt":
            self.visual_prompt = VisualPrompt(clip, n_tokens=model.visual_prompt_tokens, seed=seed)
        else:
            text = settings.towers == "both"
            self.towers = TunedClip(clip, tune=settings.tune, text=text, rank=settings.lora_rank, seed=seed)

    def _take_images(self, images: TrainingImages, clip: Clip, classes: ClassSpace) -> None:
        """Zero-shot classes of the images, and the tokens of all texts: class prompts, image and group captions."""
        settings, n_classes = self.settings, len(classes.names)
        start_CD = self.start_CD.cpu()
        self._zero_shot_N = best_classes(images.feature_ND, lambda f_BD: f_BD @ start_CD.T)[1]
        image = (images.image_captions if settings.use_image_caption else None) or _NO_CAPTIONS
        group = (images.group_captions if settings.use_batch_caption else None) or _NO_CAPTIONS
        texts = [fill_template(classes.templates[0], name) for name in classes.names]
        texts = [*([] if self.settings.tune == "residual" else texts), *image.texts, *group.texts]
        self._token_TL = clip.text_tower.tokenize(texts).to(torch.int32) if texts else torch.empty(0, 0)
        self._image_text_N = _moved_text(image, n_classes, len(images.feature_ND))
        group_text_N = _moved_text(group, n_classes + len(image.texts), len(images.feature_ND))
        self._group = GroupDraw(group_text_N, self._zero_shot_N, n_classes)

    @property
    def clip(self) -> Clip:
        """The model in use: with its own weights where they are learned."""
        return self._frozen[0] if self.towers is None else self.towers.clip

    @property
    def scale(self) -> Tensor | float:
        """Factor from cosine to logit; learned by ``full`` alone."""
        return self._frozen[0].logit_scale if self.towers is None else self.towers.log_scale.exp()

    def class_embeddings(self) -> Tensor:
        """What images are compared with [C, D]: the prototypes."""
        return F.normalize(self.prototype_CD, dim=1)

    def logits(self, image_B: Tensor) -> Tensor:
        """Scaled cosines [B, C] to the prototypes, of the plain view."""
        feature_BD = self._image_features(image_B)
        with torch.autocast(feature_BD.device.type, enabled=False):
            logits_BC: Tensor = self.scale * feature_BD.to(torch.float32) @ self.class_embeddings().T
        return logits_BC

    def begin_round(self, round_: int, over_unlabelled: OverImages) -> list[Stream]:
        """One stream of all images; it carries no targets, since `forward` makes the pseudo-labels."""
        index_N = torch.arange(len(self._zero_shot_N))
        return [
            Stream(name=IMAGES, index_M=index_N, target_MC=torch.zeros(len(index_N), 0), batch_size=self.batch_size)
        ]

    def enter_round(self, round_: int, streams: Sequence[Stream]) -> None:
        """Encodes all texts once where the text tower stays as it is."""
        if self.towers is not None and self.towers.text_learned:
            return
        with torch.no_grad():
            # A residual stands in the place of the class texts, which then need no text tower.
            chunks = [self.start_CD] if self.settings.tune == "residual" else []
            chunks += [
                self._encode_tokens(token_TL)
                for token_TL in torch.split(self._token_TL, _TEXTS_PER_CHUNK)
                if len(token_TL)
            ]
        self._cached_TD = torch.cat(chunks)

    def begin_epoch(self, round_: int, epoch: int, over_images: OverImages) -> None:
        """Freezes P0, the prototypes that weights are measured with during this epoch."""
        self.epoch.fill_(epoch)
        self.epoch_prototype_CD.copy_(self.prototype_CD)

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """L = use_F L_F + use_Z L_Z (rules 1 to 8)."""
        settings, batch = self.settings, batches[IMAGES]
        view = batch.image_B
        if self.input_kind == "pixels" and settings.augmentation:
            view = light_view(view, self.clip.image_spec.size_px)
        feature_BD = self._image_features(view)
        label_2B = self._pseudo_labels(feature_BD, batch.index_B)
        text_KBD, has_KB = self._texts(label_2B, batch.index_B)
        with torch.autocast(feature_BD.device.type, enabled=False):
            image_BD = gather_rows_with_gradients(feature_BD.to(torch.float32))
            loss = image_BD.new_zeros(())
            for branch, used in enumerate((settings.use_finetune_pseudolabel, settings.use_zeroshot_pseudolabel)):
                target_BD = self._targets(label_2B, branch, text_KBD, has_KB, used=used)
                if used:
                    loss = loss + contrastive_loss(image_BD, gather_rows_with_gradients(target_BD), self.scale)
        return loss

    def _image_features(self, image_B: Tensor) -> Tensor:
        """Features [B, D] under what is learned; cached ones stay as they are."""
        if self.input_kind == "features":
            return image_B
        if self.visual_prompt is not None:
            feature_BD: Tensor = self.visual_prompt(image_B)
            return feature_BD
        return self.clip.encode_image(image_B)

    @torch.no_grad()
    def _pseudo_labels(self, feature_BD: Tensor, index_B: Tensor) -> Tensor:
        """The current model's and the frozen one's classes, int64 [2, B] (rule 2), by cosines in single precision."""
        with torch.autocast(feature_BD.device.type, enabled=False):
            finetuned_B = (feature_BD.detach().to(torch.float32) @ self.class_embeddings().T).argmax(1)
        return torch.stack([finetuned_B, self._zero_shot_N[index_B].to(finetuned_B.device)])

    def _texts(self, label_2B: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features [4, B, D] of both branches' templates, the image's caption and a group's, and which there are.

        Every distinct text of the batch is encoded once (rule 3). Class texts always are, so that with several workers
        every parameter has a gradient.
        """
        image_B, group_B = self._image_text_N[index_B], self._group.draw(self._zero_shot_N[index_B])
        number_KB = torch.stack([*label_2B.cpu(), image_B, group_B])
        present_U, place_KB = number_KB.clamp(min=0).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        text_UD = self._encode(present_U)
        return text_UD[place_KB.to(text_UD.device)], (number_KB >= 0).to(text_UD.device)

    def _encode(self, number_U: Tensor) -> Tensor:
        """Features [U, D] of texts by their number, ascending: classes come first."""
        if self._cached_TD is None:
            return self._encode_tokens(self._token_TL[number_U])
        text_UD = self._cached_TD[number_U.to(self._cached_TD.device)]
        if self.text_prompt is None:
            return text_UD
        class_CD: Tensor = self.text_prompt()
        class_U = number_U[number_U < len(class_CD)].to(class_CD.device)
        return torch.cat([class_CD[class_U], text_UD[len(class_U) :]])

    def _encode_tokens(self, token_TL: Tensor) -> Tensor:
        return F.normalize(self.clip.text_tower.encode_tokens(token_TL.to(torch.int64)).to(torch.float32), dim=-1)

    def _targets(self, label_2B: Tensor, branch: int, text_4BD: Tensor, has_4B: Tensor, *, used: bool) -> Tensor:
        """The targets tau of one branch [B, D] (rules 4 to 6); of a branch in use, it is kept for the prototypes."""
        settings = self.settings
        text_KBD = torch.stack([text_4BD[branch], text_4BD[2], text_4BD[3]])
        switch_K = (settings.use_template_caption, settings.use_image_caption, settings.use_batch_caption)
        on_KB = torch.stack([has_4B[branch], has_4B[2], has_4B[3]]) * has_4B.new_tensor(switch_K)[:, None]
        weight_KB = text_weight(text_KBD, self.epoch_prototype_CD) * on_KB
        own_BD = self.prototype_CD[label_2B[branch]]
        if settings.legacy_broadcast:
            self._check_square(own_BD)
            template_B = text_weight(text_4BD[0], self.epoch_prototype_CD) * switch_K[0]
            mixture_BD = legacy_mixture(text_KBD, weight_KB, own_BD, template_B)
        else:
            mixture_BD = mixture(text_KBD, weight_KB, own_BD)
        target_BD = targets(own_BD, mixture_BD, settings.alpha)
        if used:
            self._remember(target_BD.detach(), label_2B[branch], weight_KB)
        return target_BD

    def _check_square(self, own_BD: Tensor) -> None:
        if len(own_BD) != own_BD.shape[1]:
            raise UserError(
                f"Setting latteclip.legacy_broadcast=true with {len(own_BD)} images in a worker's batch: the published "
                f"fault needs as many as the features are wide; set train.batch_size={own_BD.shape[1]} on one worker."
            )

    @torch.no_grad()
    def _remember(self, target_BD: Tensor, label_B: Tensor, weight_KB: Tensor) -> None:
        """Sums and numbers of a branch's targets by class, and of the sources' shares, in one tensor [C + 1, D + K]."""
        n_classes, width = self.prototype_CD.shape
        move = target_BD.new_zeros(n_classes + 1, width + len(SOURCES) + 1)
        move[:n_classes, :width].index_add_(0, label_B, target_BD)
        move[:n_classes, width] = label_B.bincount(minlength=n_classes).to(move)
        total_B = weight_KB.sum(0)
        share_KB = weight_KB / total_B.clamp(min=torch.finfo(total_B.dtype).tiny)
        move[n_classes, width:-1] = share_KB.sum(1)
        move[n_classes, -1] = (total_B > 0).sum()
        self._moves.append(move)

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the prototypes by the targets of the whole batch (rule 9), alike on every worker."""
        if self.towers is not None:
            self.towers.clamp_scale()
        if not self._moves:
            return
        n_classes, width = self.prototype_CD.shape
        move = sum_over_workers(torch.stack(self._moves).sum(0))
        self._moves = []
        moved_CD = moved_prototypes(self.prototype_CD, move[:n_classes, :width], move[:n_classes, width])
        self.prototype_CD.copy_(moved_CD)
        row = int(self.epoch) - 1
        self.share_EK[row] += move[n_classes, width:]
        self.drift_EC[row] = 1 - (moved_CD * self.start_CD).sum(1)


def _moved_text(captions: Captions, first: int, n_images: int) -> Tensor:
    """The captions' numbers [N] among all texts, where theirs begin at `first`; -1 stays."""
    if not captions.texts:
        return torch.full((n_images,), -1)
    return torch.where(captions.text_N >= 0, captions.text_N + first, -1)
