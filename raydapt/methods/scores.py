"""Scores of a classifier that need no labels of the images it was adapted to.

Each is a pure function and the higher the better, a share of what is possible: 1 is best, 0 is nothing (an agreement
worse than chance is below). None of them is accuracy, and each can be fooled; they fail in different ways, which is why
a choice goes by their ranks together.

Legend: N images, H held-out images, C classes, K neighbours, T trials of a sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.methods.kmeans import fitted_kmeans

DENSITY_TEMPERATURE = 0.05
"""Published value (Saito et al. 2021, section 3.2)."""


def mutual_information(probability_NC: Tensor, share_C: Tensor | None = None) -> float:
    """H(mean p) - mean H(p) as a share of log C (Bridle, Heading & MacKay, NIPS 1991): sure answers, all classes.

    With stated shares pi, H(mean p) becomes H(pi) - KL(mean p || pi), which is greatest where the mean prediction is
    pi; with equal shares it is H(mean p) again.
    """
    mean_of_entropies = torch.special.entr(probability_NC).sum(dim=1).mean()
    if share_C is not None:
        mean_C, share_C = probability_NC.mean(dim=0).double(), share_C.double().clamp_min(1e-6)
        divergence = (torch.special.xlogy(mean_C, mean_C) - mean_C * share_C.log()).sum()
        expected = torch.special.entr(share_C).sum() - divergence
        return float(expected - mean_of_entropies) / math.log(probability_NC.shape[1])
    entropy_of_mean = torch.special.entr(probability_NC.mean(dim=0)).sum()
    return float(entropy_of_mean - mean_of_entropies) / math.log(probability_NC.shape[1])


def class_balance(probability_NC: Tensor) -> float:
    """H(mean p) as a share of log C: the first term of the mutual information, which sureness has no part in.

    1 where the answers spread evenly over the classes. It falls when classes die out, which is how self-training
    fails; where classes are truly rare, it asks for too much of them.
    """
    return float(torch.special.entr(probability_NC.mean(dim=0)).sum()) / math.log(probability_NC.shape[1])


def neighbourhood_density(probability_NC: Tensor, temperature: float = DENSITY_TEMPERATURE) -> float:
    """Soft neighbourhood density as a share of log (N - 1) (Saito et al., ICCV 2021, equations 1 to 3).

    The mean entropy of softmax_j(s_ij / temperature), j other than i, s the cosine of two images' answers: high when
    every image has many others that are answered alike. It is highest of all when everything is answered alike.
    """
    n_images = len(probability_NC)
    if n_images < 3:
        return 0.0
    unit_NC = F.normalize(probability_NC, dim=1)
    similarity_NN = (unit_NC @ unit_NC.T / temperature).fill_diagonal_(-torch.inf)
    entropy_N = torch.special.entr(similarity_NN.softmax(dim=1)).sum(dim=1)
    return float(entropy_N.mean()) / math.log(n_images - 1)


def agreement(first_N: Tensor, second_N: Tensor, n_classes: int) -> float:
    """Cohen's kappa of two lists of classes (Cohen 1960): agreement beyond what their class shares give by chance.

    A classifier that has collapsed onto one class agrees with nothing: where chance explains everything, it is 0.
    """
    joint_CC = torch.zeros(n_classes, n_classes, dtype=torch.float64)
    joint_CC.index_put_((first_N, second_N), torch.ones((), dtype=torch.float64), accumulate=True)
    joint_CC /= max(1, len(first_N))
    observed, expected = float(joint_CC.trace()), float(joint_CC.sum(dim=0) @ joint_CC.sum(dim=1))
    return (observed - expected) / (1 - expected) if expected < 1 else 0.0


def consensus(class_TN: Tensor, n_classes: int) -> list[float]:
    """Cohen's kappa of every trial's classes with the classes that most trials give, T values.

    After the ensemble-based validation of Hu et al. (NeurIPS 2024, datasets and benchmarks), who average the
    candidates' probabilities; votes are ours: a trial that is sure and wrong then weighs no more than another.
    """
    voted_N = F.one_hot(class_TN, n_classes).sum(dim=0).argmax(dim=1)
    return [agreement(class_N, voted_N, n_classes) for class_N in class_TN]


def neighbours_vote(probability_NC: Tensor, neighbour_NK: Tensor) -> Tensor:
    """The class int64 [N] that the answers to an image's neighbours, without its own, make likeliest."""
    return probability_NC[neighbour_NK].mean(dim=1).argmax(dim=1)


def nearest_images(feature_ND: Tensor, count: int) -> Tensor:
    """The `count` other images int64 [N, K] most like each image, by cosine of L2-normalised features."""
    similarity_NN = (feature_ND @ feature_ND.T).fill_diagonal_(-torch.inf)
    return similarity_NN.topk(min(count, len(feature_ND) - 1), dim=1).indices


def cluster_agreement(class_N: Tensor, cluster_N: Tensor) -> float:
    """Adjusted mutual information of the answers and clusters of the images (Vinh, Epps & Bailey, JMLR 2010).

    0 is what chance gives. Clusters know nothing of classes, so answers that follow them follow the images; answers
    that have collapsed onto one class have none.
    """
    from sklearn.metrics import adjusted_mutual_info_score  # a second to import, which reading settings need not pay

    return float(adjusted_mutual_info_score(cluster_N.numpy(), class_N.numpy()))


def clusters(feature_ND: Tensor, count: int) -> Tensor:
    """The cluster int64 [N] of every image: k-means of L2-normalised features, from a fixed start."""
    return torch.from_numpy(fitted_kmeans(feature_ND, min(count, len(feature_ND))).labels_).long()


def accuracy(class_H: Tensor, truth_H: Tensor) -> float:
    """Share of held-out synthetic images answered with the class that they were made of (labels by construction)."""
    return float((class_H == truth_H).double().mean())


def calibrated_accuracy(confidence_H: Tensor, right_H: Tensor, confidence_N: Tensor) -> float:
    """Predicted accuracy: the average thresholded confidence (Garg et al., ICLR 2022, equations 1 and 2).

    On held-out images whose classes are known, the threshold is put where as many images are surer as are right; the
    share of the target images that are surer is the prediction.

    Args:
        confidence_H: Largest probability of each held-out image.
        right_H: Whether its answer is right, bool.
        confidence_N: Largest probability of each target image.
    """
    n_right = int(right_H.sum())
    if not n_right:
        return 0.0
    threshold = confidence_H.sort(descending=True).values[n_right - 1]
    return float((confidence_N >= threshold).double().mean())


def mean_of(scores: Iterable[float | None]) -> float:
    """The plain mean of the scores that exist: what guides a search while it runs, before there are ranks."""
    there = [score for score in scores if score is not None]
    return sum(there) / len(there) if there else 0.0
