"""The candidate sets of all images, a few classes each, beside a matrix of a thousand.

Legend: N images, B batch, C classes, K most candidates of an image.
"""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from raydapt.methods.contract import TrainingImages

_ENTRIES_PER_BLOCK = 1 << 22
"""Of the matrix that the candidates of some images are ordered in (16 MiB)."""


class Candidates(nn.Module):
    """Which classes are candidates of an image, and how much (1, or a probability). In no checkpoint.

    Args:
        candidate_NC: float32, sparse: weights of the candidates, all above 0.
    """

    class_NK: Tensor
    """int64 classes of the candidates, the heaviest first; filled up with classes of weight 0."""
    value_NK: Tensor
    """Their weights; 0 where an image has fewer."""

    def __init__(self, candidate_NC: csr_array) -> None:
        super().__init__()
        n_images, self.n_classes = candidate_NC.shape
        self.places = max(1, int(np.diff(candidate_NC.indptr).max(initial=0)))
        value_NK = torch.empty(n_images, self.places)
        class_NK = torch.empty(n_images, self.places, dtype=torch.int64)
        step = max(1, _ENTRIES_PER_BLOCK // self.n_classes)
        for rows in (slice(start, start + step) for start in range(0, n_images, step)):
            value_NK[rows], class_NK[rows] = torch.from_numpy(candidate_NC[rows].toarray()).topk(self.places, dim=1)
        self.register_buffer("class_NK", class_NK, persistent=False)
        self.register_buffer("value_NK", value_NK, persistent=False)

    def dense(self, index_B: Tensor, value_NK: Tensor | None = None) -> Tensor:
        """Weights [B, C] of some images, or other values at the places of their candidates."""
        values_BK = (self.value_NK if value_NK is None else value_NK)[index_B]
        return values_BK.new_zeros(len(index_B), self.n_classes).scatter_(1, self.class_NK[index_B], values_BK)

    def of(self, probability_2NC: Tensor) -> Tensor:
        """The entries [2, N, K] of the candidates, on the CPU."""
        return probability_2NC.gather(2, self.class_NK.cpu().expand(len(probability_2NC), -1, -1))

    def best(self) -> tuple[Tensor, Tensor]:
        """Weight float32 [N] and class int64 [N] of the heaviest candidate."""
        return self.value_NK[:, 0].cpu(), self.class_NK[:, 0].cpu()

    def sparse(self) -> csr_array:
        """All weights, float32 [N, C]."""
        value_NK, class_NK = self.value_NK.cpu().numpy(), self.class_NK.cpu().numpy()
        row_E, place_E = value_NK.nonzero()
        entries = (value_NK[row_E, place_E], (row_E, class_NK[row_E, place_E]))
        return csr_array(entries, shape=(len(value_NK), self.n_classes))


def candidate_sets(images: TrainingImages) -> csr_array:
    """Candidate sets [N, C] of all training images, sparse; of a labelled one its label."""
    assert images.partial is not None
    candidate_NC = images.partial.candidate_NC
    if not len(images.labelled_L):
        return candidate_NC
    unlabelled_N1 = np.ones((candidate_NC.shape[0], 1), np.float32)
    unlabelled_N1[images.labelled_L] = 0.0
    label_L, ones_L = images.label_L.numpy(), np.ones(len(images.label_L), np.float32)
    label_NC = csr_array((ones_L, (images.labelled_L.numpy(), label_L)), shape=candidate_NC.shape)
    merged_NC = csr_array(candidate_NC.multiply(unlabelled_N1) + label_NC)
    merged_NC.eliminate_zeros()
    return merged_NC
