"""Targets of images: a matrix, or of very many classes the few that count, as a sparse one.

Legend: M images, B batch, C classes.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

Targets: TypeAlias = Tensor | csr_array
"""[M, C]."""


def one_hot_rows(class_M: npt.NDArray[np.int64], n_classes: int) -> csr_array:
    """float32 sparse one-hot targets [M, C]."""
    ones, start = np.ones(len(class_M), np.float32), np.arange(len(class_M) + 1)
    return csr_array((ones, class_M, start), shape=(len(class_M), n_classes))


def batch_of(target_MC: Targets, position_B: Tensor) -> Tensor:
    """float32 [B, C] of some images."""
    if isinstance(target_MC, Tensor):
        return target_MC[position_B].float()
    return torch.from_numpy(target_MC[position_B.numpy()].toarray()).float()


def sparse(target_MC: Targets) -> csr_array:
    """The same, float32, without the classes that are no target."""
    if not isinstance(target_MC, Tensor):
        return target_MC
    dense_MC = target_MC.to_dense().to(torch.float32)
    row_E, class_E = (index.numpy() for index in dense_MC.nonzero(as_tuple=True))
    entries = (dense_MC[row_E, class_E].numpy(), (row_E, class_E))
    return csr_array(coo_array(entries, shape=tuple(dense_MC.shape)))
