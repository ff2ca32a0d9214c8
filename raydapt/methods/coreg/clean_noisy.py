"""Which partial labels to believe: a mixture of two Gaussians over the losses of all images (Co-Reg, division).

Legend: N images, C classes, E epochs remembered.
"""

import warnings

import torch
from torch import Tensor


def align(probability_BC: Tensor, share_C: Tensor) -> Tensor:
    """Distribution alignment: norm(f prior / share), where share is f's mean over all images.

    The prior is uniform; for another one, `share_C` is divided by C times it.
    """
    aligned_BC = probability_BC / share_C.clamp(min=1e-6)
    return aligned_BC / aligned_BC.sum(-1, keepdim=True)


def division_loss(probability_NC: Tensor, candidate_NC: Tensor) -> Tensor:
    """-log of the likeliest candidate's probability, scaled to 0..1 over the images; zeros if all are the same."""
    best_N = (probability_NC * (candidate_NC > 0)).amax(1)
    loss_N = -best_N.clamp(min=1e-12).log()
    low, high = loss_N.min(), loss_N.max()
    return (loss_N - low) / (high - low) if high > low else torch.zeros_like(loss_N)


def clean_probability(loss_N: Tensor, *, seed: int) -> Tensor:
    """Posterior of the component with the lower mean of a mixture of two Gaussians, float32 [N].

    Losses that are all the same, or of a single image, tell nothing apart: every image is believed then.

    Args:
        loss_N: Mean of the scaled losses of the last epochs.
        seed: Of the mixture's start.
    """
    if len(loss_N) < 2 or float(loss_N.max() - loss_N.min()) < 1e-6:
        return torch.ones_like(loss_N)
    from sklearn.exceptions import ConvergenceWarning  # a second to import, for one method of many
    from sklearn.mixture import GaussianMixture

    column_N1 = loss_N.double().numpy()[:, None]
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are the published rule
        mixture.fit(column_N1)
    posterior_N = mixture.predict_proba(column_N1)[:, mixture.means_.argmin()]
    return torch.from_numpy(posterior_N).to(torch.float32)
