"""The fixed point: rounds of class means from soft labels and soft labels from class means, block by block.

Memory: beside the features nothing of size N x C exists. A block of rows has C scores at a time, and between rounds
each image keeps its `kept_labels` largest labels, twice. For 10^7 images, 1,000 classes and width 512 that is 10 GB of
features in float16, 2 x 1.9 GB of labels and 0.8 GB of neighbours.

Legend: N images, B block of images, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raydapt.artefacts.rows import Features, blocks
from raydapt.methods.transduct import rules
from raydapt.methods.transduct.neighbours import Neighbours, nearest
from raydapt.methods.transduct.rules import Anchors, Head, Statistics
from raydapt.methods.transduct.second import SecondView
from raydapt.methods.transduct.settings import TransductSettings
from raydapt.methods.transduct.soft_labels import SoftLabels

BaseLogits = Callable[[slice], Tensor]
"""Logits [B, C] of a block of the images by the classifier that transduction starts from."""
_BLOCK_ELEMENTS = 2**23
_INNER_ROUNDS = 5
"""TransCLIP's updates of the labels for each update of the means (section 4.1)."""
_FIRST_IMAGES = 8
"""TransCLIP's surest images that a class mean starts from."""


@dataclass(frozen=True, kw_only=True)
class TransductFit:
    """What a fit leaves: the labels of its images, and a classifier for others."""

    labels: SoftLabels
    """The transductive answer."""
    head: Head
    """Added to `text_strength` times the base logits, the classifier of new images; of N / (N + `caution` C) of the
    strength that the fitted images were labelled with."""
    text_strength: float
    log_prior_C: Tensor
    """Log class prior that the mixture ends with; it is in the head's bias already."""

    def probabilities(self) -> Tensor:
        """The transductive answer as one matrix [N, C]; for sets where that fits in memory."""
        return self.labels.dense(slice(None))


@dataclass
class _Problem:
    """What stays the same over the rounds."""

    feature_ND: Features
    text_CD: Tensor
    base: BaseLogits | None
    """None: the texts', s t . f."""
    logit_scale: float
    settings: TransductSettings
    neighbours: Neighbours
    second: SecondView | None = None
    labels: SoftLabels = field(init=False)
    spare: SoftLabels = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.feature_ND), len(self.text_CD), self.settings.kept_labels
        self.labels = SoftLabels.empty(*size, self.text_CD.device)
        self.spare = SoftLabels.empty(*size, self.text_CD.device)

    def blocks(self) -> Iterator[slice]:
        return blocks(len(self.feature_ND), max(256, _BLOCK_ELEMENTS // len(self.text_CD)))

    def start(self) -> None:
        """Labels are the base classifier's probabilities."""
        for rows in self.blocks():
            self.labels.write(rows, self.base_logits(rows).softmax(dim=1))

    def base_logits(self, rows: slice) -> Tensor:
        """[B, C] of a block by the classifier that the labels start from."""
        if self.base is None:
            return self.logit_scale * self.feature_ND[rows] @ self.text_CD.T
        return self.base(rows)

    def linear_scores(self, head: Head, rows: slice) -> Tensor:
        """Lambda base_i + w . f_i + b, [B, C]; of the texts' logits and a head one product of matrices."""
        feature_BD, strength = self.feature_ND[rows], self.settings.text_strength
        if self.base is None:
            weight_CD = strength * self.logit_scale * self.text_CD + head.weight_CD
            return torch.addmm(head.bias_C, feature_BD, weight_CD.T)
        return (strength * self.base(rows)).add_(torch.addmm(head.bias_C, feature_BD, head.weight_CD.T))

    def statistics(self) -> Statistics:
        sum_CD, mass_C = torch.zeros_like(self.text_CD), self.text_CD.new_zeros(len(self.text_CD))
        for rows in self.blocks():
            label_BC = self.labels.dense(rows)
            sum_CD.addmm_(label_BC.T, self.feature_ND[rows])
            mass_C += label_BC.sum(dim=0)
        return Statistics(sum_CD, mass_C)

    def second_head(self) -> Head | None:
        """Of the second encoder's features under the current labels."""
        if self.second is None:
            return None
        width = self.second.feature_NE.shape[1]
        sum_CE = self.text_CD.new_zeros(len(self.text_CD), width)
        mass_C = self.text_CD.new_zeros(len(self.text_CD))
        for rows in self.blocks():
            label_BC = self.labels.dense(rows) * self.second.there_N1[rows]
            sum_CE.addmm_(label_BC.T, self.second.feature_NE[rows])
            mass_C += label_BC.sum(dim=0)
        return self.second.head(Statistics(sum_CE, mass_C))

    def second_trust(self) -> float:
        """How far neighbours by the second encoder have the same label, beyond chance: 0 to 1.

        (a - e) / (1 - e) with a = sum_i z_i . zbar_i / N, zbar_i the mean label of the neighbours, and e = sum_c pi_c^2
        (Cohen's kappa of soft labels).
        """
        assert self.second is not None
        agreed, mass_C = 0.0, self.text_CD.new_zeros(len(self.text_CD))
        for rows in self.blocks():
            label_BC = self.labels.dense(rows)
            agreed += float((label_BC * self.labels.neighbours_mean(self.second.neighbours, rows)).sum())
            mass_C += label_BC.sum(dim=0)
        images = float(mass_C.sum())
        chance = float((mass_C / images).square().sum())
        return max(0.0, (agreed / images - chance) / max(1 - chance, 1e-6))

    def relabel(self, head: Head, *, second: Head | None = None, normalised: bool = True) -> None:
        """z_i = softmax(lambda base_i + w . f_i + b + strength sum_j w_ij z_j) for all images at once.

        A second encoder adds the same terms of its own, times its trust: w . g_i + b + strength sum_j w_ij z_j.
        """
        trust = 0.0 if second is None else self.second_trust()
        for rows in self.blocks():
            score_BC = self.linear_scores(head, rows)
            if self.neighbours.index_NK.shape[1] and self.settings.neighbour_strength:
                mean_BC = self.labels.neighbours_mean(self.neighbours, rows, normalised=normalised)
                score_BC += self.settings.neighbour_strength * mean_BC
            if second is not None and self.second is not None and trust:
                score_BC += trust * self.second.scores(second, rows)
                mean_BC = self.labels.neighbours_mean(self.second.neighbours, rows)
                score_BC += trust * self.settings.second_neighbour_strength * mean_BC
            self.spare.write(rows, score_BC.softmax(dim=1))
        self.labels, self.spare = self.spare, self.labels


@torch.no_grad()
def fit(
    feature_ND: Features,
    text_CD: Tensor,
    logit_scale: float,
    settings: TransductSettings | None = None,
    *,
    log_prior_C: Tensor | None = None,
    base: BaseLogits | None = None,
    neighbours: Neighbours | None = None,
    second_NE: Features | None = None,
) -> TransductFit:
    """Labels all images together.

    Args:
        feature_ND: L2-normalised features, where the class embeddings are.
        text_CD: float32 L2-normalised class embeddings.
        logit_scale: Factor s from cosine to logit.
        settings: The defaults where left out.
        log_prior_C: Log shares that the user states; they are then not estimated.
        base: The classifier to start from, of rows of `feature_ND`; the texts', s t . f, where left out.
        neighbours: Those of `nearest`, where they are known already.
        second_NE: L2-normalised features of the same images by another encoder, zeros for an image without
            one; read by ``tempered`` and ``spherical``. The classifier of new images does not look at such features.

    Returns:
        The labels, and the classifier of new images: softmax(lambda base + rho (w . f + b)), rho = N / (N + caution C).
    """
    settings = settings or TransductSettings()
    if neighbours is None:
        neighbours = nearest(feature_ND, settings.neighbours, text_CD.device)
    second = None if second_NE is None else SecondView.of(second_NE, settings, text_CD.device)
    problem = _Problem(feature_ND, text_CD, base, logit_scale, settings, neighbours, second)
    problem.start()
    if settings.rule in ("tempered", "spherical"):
        head, prior_C = _mixture(problem, log_prior_C)
    else:
        head = _published(problem)
        prior_C = torch.zeros_like(head.bias_C).log_softmax(dim=0)
    n_images = len(feature_ND)
    strength = n_images / (n_images + settings.caution * len(text_CD))
    head = Head(strength * head.weight_CD, strength * head.bias_C)
    return TransductFit(labels=problem.labels, head=head, text_strength=settings.text_strength, log_prior_C=prior_C)


def _mixture(problem: _Problem, stated_C: Tensor | None) -> tuple[Head, Tensor]:
    """Tempered or spherical: class means, shares and labels in turn."""
    settings, square_D = problem.settings, rules.square_sums(problem.feature_ND)
    statistics = problem.statistics()
    gap = settings.anchor_gap if settings.rule == "tempered" else 0.0
    mean_D = rules.mean_of(problem.feature_ND)
    anchor_CD = rules.text_anchors(mean_D, problem.text_CD, reach=settings.anchor_reach, gap=gap)
    anchors = Anchors(anchor_CD, rules.shared_variance(statistics, anchor_CD, square_D))
    for _ in range(settings.rounds):
        prior_C = rules.shares_prior(statistics, settings.prior_images) if stated_C is None else stated_C
        if settings.rule == "tempered":
            head = rules.anchored_head(statistics, anchors, square_D, settings.anchor_images)
            head = rules.tempered(head, settings.temper)
        else:
            head = rules.spherical_head(
                statistics, anchor_CD, temper=settings.temper, anchor_images=settings.anchor_images
            )
        head = Head(head.weight_CD, head.bias_C + prior_C)
        problem.relabel(head, second=problem.second_head())
        statistics = problem.statistics()
    return head, prior_C


def _published(problem: _Problem) -> Head:
    """TransCLIP: means and covariance, then the labels several times; StatA the same with anchors."""
    settings, square_D = problem.settings, rules.square_sums(problem.feature_ND)
    statistics = problem.statistics()
    anchors = Anchors(problem.text_CD, rules.shared_variance(statistics, problem.text_CD, square_D))
    for round_ in range(settings.rounds):
        if settings.rule == "stata":
            head = rules.anchored_head(statistics, anchors, square_D, settings.anchor_images)
        elif round_ == 0:
            width = problem.feature_ND.shape[1]
            head = rules.gaussian_head(_surest_means(problem), torch.full_like(square_D, 1 / width))
        else:
            head = rules.transclip_head(statistics, square_D)
        for _ in range(_INNER_ROUNDS):
            problem.relabel(head, normalised=False)
        statistics = problem.statistics()
    return head


def _surest_means(problem: _Problem) -> Tensor:
    """The mean of the images of which the base classifier is surest, of every class (TransCLIP, section 4.1)."""
    best_SC = index_SC = None
    for rows in problem.blocks():
        probability_BC = problem.base_logits(rows).softmax(dim=1)
        row_BC = torch.arange(rows.start, rows.stop, device=probability_BC.device)[:, None].expand_as(probability_BC)
        if best_SC is not None and index_SC is not None:
            probability_BC, row_BC = torch.cat([best_SC, probability_BC]), torch.cat([index_SC, row_BC])
        best_SC, place_SC = probability_BC.topk(min(_FIRST_IMAGES, len(probability_BC)), dim=0)
        index_SC = row_BC.gather(0, place_SC)
    assert index_SC is not None
    return problem.feature_ND[index_SC.flatten()].reshape(*index_SC.shape, -1).mean(dim=0)
