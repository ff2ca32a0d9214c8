"""Images that belong to none of the named classes: an estimate of their share, and a probability for each image.

An image of a foreign class is near no text, and less near to the text of the class that it was given than the other
images are. Plain cosines hide that behind what all images and all texts have in common, so both means are taken out.

Legend: N images, C classes, D width, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from raydapt.methods.transduct.neighbours import Neighbours

LEAST_SEPARATION = 3.5
"""Distance of the two groups in standard deviations at which a warning is given."""
MOST_SHARE = 0.5
"""A lower group larger than this is no reason for a warning: it is then the images of the unclear classes."""
CLEAR_SEPARATION = 5.0
"""From here on, images of the lower group are kept out of pseudo-labels, synthesis and prototypes."""
_LEAST_IMAGES = 50


@dataclass(frozen=True, kw_only=True)
class OpenSet:
    """What can be told without labels of images that belong to no named class."""

    none_probability_N: Tensor
    """float32 probability that an image belongs to none of the names; 0 where there are too few images to tell."""
    share: float
    """Estimated share of such images, the weight of the lower group."""
    separation: float
    """Distance of the groups' means in standard deviations of either."""
    bimodal: bool
    """Whether two groups explain the scores better than one (Bayesian information criterion)."""

    @property
    def suspected(self) -> bool:
        """Whether to warn."""
        return self.bimodal and self.separation >= LEAST_SEPARATION and self.share <= MOST_SHARE

    @property
    def clear(self) -> bool:
        """Whether the groups are far enough apart to keep the lower one out without being asked."""
        return self.suspected and self.separation >= CLEAR_SEPARATION

    def sentence(self) -> str | None:
        """A warning; None where there is no reason for one."""
        if not self.suspected:
            return None
        return (
            f"About {self.share:.0%} of the images seem to belong to none of the names: set data.reject=true to keep "
            "them out, or add the missing names."
        )


def familiarity(feature_ND: Tensor, text_CD: Tensor, class_N: Tensor, neighbours: Neighbours | None = None) -> Tensor:
    """How well an image fits the text of the class that it was given, float32 [N]; the higher the better.

    With l the class of image i, the sum of two scores, each with mean 0 and deviation 1 over the images:
    (f_i - mean f) . (t_l - mean t), which is the cosine less what every image has of this text and every text of this
    image, and (f_i - mean f) . t_l, which also says how near the image is to texts at all. With neighbours each is
    averaged with the neighbours' mean first.

    Args:
        feature_ND: L2-normalised features.
        text_CD: L2-normalised class embeddings.
        class_N: int64 class of each image, best the transductive answer's.
        neighbours: Of the same images.
    """
    offset_ND = feature_ND - feature_ND.mean(dim=0)
    own_ND = text_CD[class_N]
    scores = [(offset_ND * (own_ND - text_CD.mean(dim=0))).sum(dim=1), (offset_ND * own_ND).sum(dim=1)]
    if neighbours is not None and neighbours.index_NK.shape[1]:
        scores = [(score_N + score_N[neighbours.index_NK].mean(dim=1)) / 2 for score_N in scores]
    tiny = torch.finfo(torch.float32).tiny
    centred = [score_N - score_N.mean() for score_N in scores]
    return centred[0] / centred[0].std(correction=0).clamp_min(tiny) + centred[1] / centred[1].std(
        correction=0
    ).clamp_min(tiny)


def detect(familiarity_N: Tensor) -> OpenSet:
    """Two Gaussians of one variance on the scores; the lower one holds the images of no named class.

    With one variance the probability falls with the score everywhere, as it should.
    """
    n_images = len(familiarity_N)
    value_N1 = familiarity_N.double().cpu().numpy()[:, None]
    if n_images < _LEAST_IMAGES or not value_N1.std():
        nothing_N = torch.zeros(n_images)
        return OpenSet(none_probability_N=nothing_N, share=0.0, separation=0.0, bimodal=False)
    start = np.quantile(value_N1, [0.15, 0.65])[:, None]
    two = GaussianMixture(2, covariance_type="tied", means_init=start, weights_init=[0.3, 0.7], max_iter=500, tol=1e-4)
    one = GaussianMixture(1, covariance_type="tied")
    two.fit(value_N1)
    one.fit(value_N1)
    lower = int(two.means_[:, 0].argmin())
    distance = float(abs(two.means_[0, 0] - two.means_[1, 0]) / np.sqrt(two.covariances_[0, 0]))
    return OpenSet(
        none_probability_N=torch.from_numpy(two.predict_proba(value_N1)[:, lower]).float(),
        share=float(two.weights_[lower]),
        separation=distance,
        bimodal=bool(two.bic(value_N1) < one.bic(value_N1)),
    )
