"""AiR: images made of the classes judge the unlabelled ones, and are learned from (CVPR 2025; reconstruction, spec).

A part that `fpl`, `grip` and `cpl` take in: their rounds, selections and losses stay as they are. What is published is
that images of a LoRA-tuned diffusion model form an auxiliary classifier, that it is fused with the text classifier to
make pseudo-labels, and that the images enrich prompt learning. The rest is reconstructed, each choice a setting.

Legend: M synthetic images, U unlabelled, B batch, C classes, K candidate classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.artefacts.synthetic_images import SyntheticImages
from raydapt.methods.air.rules import centred, class_weights, fuse, matching_scale, recognised
from raydapt.methods.air.settings import AirSettings
from raydapt.methods.contract import Batch, Stream, TrainingImages, one_hot
from raydapt.methods.even_sample import even_sample
from raydapt.methods.prompting.probability_blocks import Probabilities, ProbabilityBlocks, Rows
from raydapt.models.residual_prompt import Prompted

SYNTHETIC = "synthetic"
TEXT, IMAGES, BOTH = "text", "images", "both"
"""The judges of `PseudoLabels.guesses`."""
_ROWS_PER_CHUNK = 1024
_ROWS_TO_MATCH = 4096


class AirPart(nn.Module):
    """The auxiliary image classifier and the loss of the synthetic images.

    Args:
        settings: The weights of both, and the choices within them.
        synthetic: The images, of all classes.
        zero_shot_CD: Class embeddings of the plain prompt, which cleaning goes by.
        logit_scale: Of the CLIP.
    """

    scale: Tensor
    centre_D: Tensor

    def __init__(
        self, settings: AirSettings, synthetic: SyntheticImages, zero_shot_CD: Tensor, logit_scale: float
    ) -> None:
        super().__init__()
        self.settings, self.n_classes = settings, len(zero_shot_CD)
        self._synthetic = synthetic
        kept_M = torch.ones(len(synthetic.class_M), dtype=torch.bool)
        if settings.cleaning_top:
            score_MC = synthetic.feature_MD @ zero_shot_CD.cpu().T
            kept_M = recognised(score_MC, synthetic.class_M, settings.cleaning_top)
        self.kept_M = kept_M.nonzero()[:, 0]
        """int64 indices of the synthetic images that are used."""
        scale = logit_scale if isinstance(settings.image_scale, str) else settings.image_scale
        # What the last round has found is needed again where the images judge at test time as well.
        self.register_buffer("scale", torch.tensor(float(scale)), persistent=settings.fusion_at_test)
        centre_D = torch.zeros(synthetic.feature_MD.shape[1])
        self.register_buffer("centre_D", centre_D, persistent=settings.fusion_at_test)
        self._weight_CD: Tensor | None = None

    @property
    def judges(self) -> bool:
        """Whether the auxiliary classifier has a say in the pseudo-labels."""
        return self.settings.fusion_weight > 0

    def judge(
        self,
        round_: int,
        text_UK: ProbabilityBlocks,
        images: TrainingImages,
        features_of: Callable[[Rows], Tensor],
        encoder: Prompted | None,
    ) -> tuple[ProbabilityBlocks, dict[str, Tensor]]:
        """The fused pseudo-label probabilities p* [U, K], and which class each judge would choose.

        Args:
            round_: 1-based; lambda decays with it.
            text_UK: What the text classifier says of the candidate classes.
            images: The training images; of candidate classes other than all (TRZSL), p^ is over these alone.
            features_of: Features of some of the unlabelled images, of the encoder.
            encoder: Encodes the synthetic images anew; None takes the frozen features.
        """
        candidates_K, n_images = images.candidate_classes.cpu(), len(images.unlabelled_U)
        weight_KD = self.weights(encoder, candidates_K)
        if self.settings.centred:
            sum_D = torch.stack([features_of(rows).double().sum(dim=0) for rows, _ in text_UK]).sum(dim=0)
            self.centre_D.copy_(sum_D / n_images)
        centre_D = self.centre_D.cpu()

        def scores_of(rows: Rows) -> Tensor:
            return self._real(features_of(rows), centre_D) @ weight_KD.T

        if self.settings.image_scale == "matched":
            row_R = even_sample(torch.arange(n_images), _ROWS_TO_MATCH)
            confidence = float(text_UK.rows_of(row_R).max(axis=1).mean())
            self.scale.fill_(matching_scale(scores_of(row_R), confidence))
        scale, weight = float(self.scale), self.settings.fusion_weight * self.settings.fusion_decay ** (round_ - 1)

        def image_of(rows: Rows) -> Probabilities:
            return (scale * scores_of(rows)).softmax(dim=1).numpy()

        both_UK = ProbabilityBlocks(text_UK.shape, lambda rows: fuse(text_UK.rows_of(rows), image_of(rows), weight))
        guesses: dict[str, list[Tensor]] = {TEXT: [], IMAGES: [], BOTH: []}
        for (rows, text_BK), (_, both_BK) in zip(text_UK, both_UK, strict=True):
            for name, p_BK in zip(guesses, (text_BK, image_of(rows), both_BK), strict=True):
                guesses[name].append(candidates_K[torch.from_numpy(p_BK.argmax(axis=1))])
        return both_UK, {name: torch.cat(parts) for name, parts in guesses.items()}

    def weights(self, encoder: Prompted | None, candidates_K: Tensor) -> Tensor:
        """The auxiliary classifier [K, D] of some classes, on the CPU."""
        synthetic = self._synthetic
        index_M = self.kept_M[torch.isin(synthetic.class_M[self.kept_M], candidates_K)]
        feature_MD = synthetic.feature_MD[index_M]
        if encoder is not None:
            feature_MD = encode(encoder, lambda index_B: synthetic.take(index_B, "pixels"), index_M)
        if self.settings.centred:
            feature_MD = centred(feature_MD, feature_MD.mean(dim=0))
        position_C = torch.full((self.n_classes,), -1).index_copy(0, candidates_K, torch.arange(len(candidates_K)))
        return class_weights(
            feature_MD,
            position_C[synthetic.class_M[index_M]],
            len(candidates_K),
            prototypes=self.settings.prototypes,
            nearest=self.settings.nearest,
        )

    def _real(self, feature_BD: Tensor, centre_D: Tensor) -> Tensor:
        return centred(feature_BD, centre_D) if self.settings.centred else feature_BD

    def streams(self, batch_size: int, candidates_K: Tensor) -> list[Stream]:
        """The synthetic images with the classes that they were made of; nothing if they are not learned from.

        Args:
            batch_size: Images per step.
            candidates_K: int64 classes without labels: all but in TRZSL, where the others are learned from labels.
        """
        if not self.settings.synthetic_weight:
            return []
        index_M = self.kept_M
        if self.settings.trzsl_classes == "unseen" and not self.settings.synthetic_only:
            index_M = index_M[torch.isin(self._synthetic.class_M[index_M], candidates_K.cpu())]
        target_MC = one_hot(self._synthetic.class_M[index_M], self.n_classes)
        return [Stream(name=SYNTHETIC, index_M=index_M, target_MC=target_MC, batch_size=batch_size, source="synthetic")]

    def loss(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """Beta times L_s, the cross-entropy of the synthetic images."""
        return self.settings.synthetic_weight * F.cross_entropy(logits_BC, batch.target_BC)

    def fused_logits(self, prompted: Prompted, image_B: Tensor, logits_BC: Tensor) -> Tensor:
        """log(p + lambda p^) over all classes, whose softmax is p*: fusion at test time.

        The mean of the real images is that of the training images at the beginning of the last round.
        """
        if self._weight_CD is None:
            encoder = prompted if prompted.uses_pixels else None
            self._weight_CD = self.weights(encoder, torch.arange(self.n_classes)).to(logits_BC.device)
        feature_BD = prompted.image_features(image_B).to(self._weight_CD)
        score_BC = self._real(feature_BD, self.centre_D) @ self._weight_CD.T
        image_BC = (self.scale * score_BC).softmax(dim=1)
        return (logits_BC.softmax(dim=1) + self.settings.fusion_weight * image_BC).log()


@torch.no_grad()
def encode(encoder: Prompted, pixels_of: Callable[[Tensor], Tensor], index_M: Tensor) -> Tensor:
    """Features [M, D] on the CPU of the images that `pixels_of` gives for int64 indices."""
    was_training = encoder.training
    encoder.eval()
    device = encoder.clip.device
    parts = [
        encoder.image_features(pixels_of(i).to(device)).float().cpu() for i in torch.split(index_M, _ROWS_PER_CHUNK)
    ]
    encoder.train(was_training)
    return torch.cat(parts)
