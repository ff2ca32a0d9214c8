"""The candidate sets of all images, a few classes each, beside a matrix of a thousand.

Legend: N images, B batch, C classes, K most candidates of an image.
"""

import torch
from torch import Tensor, nn


class Candidates(nn.Module):
    """Which classes are candidates of an image, and how much (1, or a probability). In no checkpoint.

    Args:
        candidate_NC: Weights of the classes, 0 for those that are none.
        n_classes: C.
    """

    class_NK: Tensor
    """int64 classes of the candidates, the heaviest first; filled up with classes of weight 0."""
    value_NK: Tensor
    """Their weights; 0 where an image has fewer."""

    def __init__(self, candidate_NC: Tensor, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.places = max(1, int((candidate_NC > 0).sum(1).max())) if len(candidate_NC) else 1
        value_NK, class_NK = candidate_NC.topk(self.places, dim=1)
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

    def sparse(self) -> Tensor:
        """All weights, a sparse tensor [N, C] on the CPU."""
        row_E, place_E = self.value_NK.cpu().nonzero(as_tuple=True)
        index_2E = torch.stack([row_E, self.class_NK.cpu()[row_E, place_E]])
        values_E, shape = self.value_NK.cpu()[row_E, place_E], (len(self.value_NK), self.n_classes)
        return torch.sparse_coo_tensor(index_2E, values_E, shape, check_invariants=True).coalesce()
