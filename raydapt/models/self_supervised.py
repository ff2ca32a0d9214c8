"""A small convolutional network and the contrastive loss it learns images by, without any label (SimCLR).

Legend: B batch, S image side in px, W width of the feature, P width of the projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.data.decode import ImageSpec

WIDTH = 128
"""Of the features."""
_PROJECTION = 64
_LAYERS = ((32, 2), (64, 2), (64, 1), (128, 2), (WIDTH, 1))
"""Channels and stride of the convolutions, of 3 x 3 each."""


class SmallNet(nn.Module):
    """0.3 million parameters: images in, features out; `project` is for learning alone.

    Plain convolutions: on a CPU they learn faster than depth-wise ones of a tenth of the operations.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for channels, stride in _LAYERS:
            layers += [
                nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            channels_in = channels
        self.layers = nn.Sequential(*layers)
        nn.utils.convert_conv2d_weight_memory_format(self.layers, torch.channels_last)
        self.projector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, _PROJECTION))

    def forward(self, pixel_B3SS: Tensor) -> Tensor:
        """Features [B, W], not normalised, of float pixels in 0..255."""
        image_B3SS = (pixel_B3SS / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        feature: Tensor = self.layers(image_B3SS).mean(dim=(2, 3))
        return feature

    def project(self, pixel_B3SS: Tensor) -> Tensor:
        """L2-normalised projections [B, P] that the loss compares."""
        return F.normalize(self.projector(self(pixel_B3SS)), dim=1)


class SelfEncoder(nn.Module):
    """A network that has learned, behind the part of `raydapt.models.clip.Clip` that encodes.

    Args:
        net: The network.
        mean_W: Mean feature of the images that it learned from.
        image_spec: How images reach it.
        identity: Of what it learned.
    """

    mean_W: Tensor

    def __init__(self, net: SmallNet, mean_W: Tensor, image_spec: ImageSpec, identity: str) -> None:
        super().__init__()
        self.model = net.eval().requires_grad_(False)
        self.image_spec, self.identity, self.embed_dim = image_spec, identity, WIDTH
        self.register_buffer("mean_W", mean_W, persistent=False)

    def encode_image(self, pixel_B3SS: Tensor) -> Tensor:
        """L2-normalised float32 features [B, W] of uint8 pixels, less the mean: behind a ReLU all are positive."""
        feature_BW = self.model(pixel_B3SS.to(self.mean_W.device).to(torch.float32))
        return F.normalize(feature_BW - self.mean_W, dim=1)


def contrast_loss(first_BP: Tensor, second_BP: Tensor, temperature: float) -> Tensor:
    """NT-Xent (Chen et al., ICML 2020, equation 1): a view finds the other one of its image among 2 B - 1.

    -1 / 2B sum_i log(exp(u_i . u_j(i) / tau) / sum_(k != i) exp(u_i . u_k / tau)), j(i) the other view of the image.

    Args:
        first_BP: L2-normalised projections of one view of every image.
        second_BP: Of the other view.
        temperature: tau.
    """
    view_MP = torch.cat([first_BP, second_BP])
    n = len(first_BP)
    cosine_MM = view_MP @ view_MP.T / temperature
    own = torch.eye(2 * n, dtype=torch.bool, device=view_MP.device)
    partner_M = torch.arange(2 * n, device=view_MP.device).roll(n)
    return F.cross_entropy(cosine_MM.masked_fill(own, float("-inf")), partner_M)
