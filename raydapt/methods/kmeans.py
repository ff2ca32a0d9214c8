"""k-means of features, by scikit-learn; of copies there are fewer clusters than were asked for, which is no fault.

Legend: N images, D width.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from sklearn.cluster import KMeans


def fitted_kmeans(feature_ND: Tensor, count: int, **settings: Any) -> KMeans:
    """The clusters of images from one fixed start; `settings` are those of scikit-learn's `KMeans`."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(count, n_init=1, random_state=0, **settings).fit(feature_ND.numpy())
