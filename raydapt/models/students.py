"""Small image classifiers that learn from a large model's guesses: backbone, linear classifier, projector.

Legend: B batch, C classes, D width of the projected space, W width of the backbone's feature, S image side in px.
"""

import re
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.errors import UserError

PROJECTION_WIDTH = 128
FEATURE_STUDENTS = ("linear", "mlp")
"""Students that take the features of a frozen image tower in place of images."""
_WIDE_RESNET = re.compile(r"wide_resnet(\d+)_(\d+)")
_NAMES = "mini, preact_resnet18, wide_resnetDEPTH_WIDTH (such as wide_resnet28_2), timm/NAME, linear or mlp"


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch norm and ReLU (He et al., ECCV 2016)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(n_in), nn.BatchNorm2d(n_out)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        same = n_in == n_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps; a shortcut that changes the shape starts behind the first activation."""
        active = F.relu(self.norm1(x))
        straight = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = straight + self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out


class PreActNet(nn.Module):
    """A pre-activation residual network: stem, stages of blocks, mean over the image.

    Args:
        stem: Width, kernel and stride of the first convolution.
        stages: Width, number of blocks and stride of each stage.
    """

    def __init__(self, stem: tuple[int, int, int], stages: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        width, kernel, stride = stem
        self.stem = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False)
        blocks: list[nn.Module] = []
        for n_out, depth, stage_stride in stages:
            for i in range(depth):
                blocks.append(PreActBlock(width, n_out, stage_stride if i == 0 else 1))
                width = n_out
        self.blocks, self.norm, self.width = nn.Sequential(*blocks), nn.BatchNorm2d(width), width

    def forward(self, image_B3SS: Tensor) -> Tensor:
        """Features [B, W]."""
        x = F.relu(self.norm(self.blocks(self.stem(image_B3SS))))
        return x.mean((2, 3))


class Student(nn.Module):
    """A classifier with a second head into the space of the contrast: linear, ReLU, linear to 128, unit length.

    Args:
        name: `mini`, `preact_resnet18`, `wide_resnetDEPTH_WIDTH`, `timm/NAME`; or of features `linear` or `mlp`.
        n_classes: C.
        pretrained: Start a timm model from its published weights.
        width: Of the features that `linear` and `mlp` take.
        image_px: Side of the images; from 64 on the published residual network halves them in its first stage.

    Raises:
        UserError: For a name that is no student, or weights that cannot be fetched.
    """

    def __init__(
        self, name: str, n_classes: int, *, pretrained: bool = False, width: int = 0, image_px: int = 32
    ) -> None:
        super().__init__()
        if name in FEATURE_STUDENTS:
            self.backbone: nn.Module = _of_features(name, width)
        else:
            self.backbone, width = _backbone(name, pretrained=pretrained, image_px=image_px)
        self.head = nn.Linear(width, n_classes)
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION_WIDTH))

    def forward(self, image_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and unit vectors [B, D], float32, of normalised images, on the images' device."""
        feature_BW, device = self.backbone(image_B3SS.to(self.device, non_blocking=True)), image_B3SS.device
        logits_BC, projected_BD = self.head(feature_BW), self.projector(feature_BW)
        return logits_BC.float().to(device), F.normalize(projected_BD.float(), dim=1).to(device)

    def classify(self, image_B3SS: Tensor) -> Tensor:
        """Logits [B, C] alone."""
        logits_BC: Tensor = self.head(self.backbone(image_B3SS.to(self.device)))
        return logits_BC.to(image_B3SS.device)

    @property
    def device(self) -> torch.device:
        """Its own, which need not be that of the images."""
        return self.head.weight.device


def _of_features(name: str, width: int) -> nn.Module:
    """What precedes the classifier: the features with each value standardised, or one hidden layer of their width."""
    if name == "linear":
        return nn.BatchNorm1d(width)
    return nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())


def n_deployed_parameters(student: Student) -> int:
    """Parameters of backbone and classifier: the projector stays behind."""
    return sum(p.numel() for part in (student.backbone, student.head) for p in part.parameters())


def _backbone(name: str, *, pretrained: bool, image_px: int) -> tuple[nn.Module, int]:
    if name.startswith("timm/"):
        return _timm(name, pretrained=pretrained)
    if pretrained:
        raise UserError(f"Setting coreg.pretrained has no weights for coreg.student={name!r}: use timm/NAME.")
    if name == "mini":
        net = PreActNet((32, 5, 2), ((64, 1, 2), (96, 1, 2)))
    elif name == "preact_resnet18":
        net = PreActNet((64, 3, 1), ((64, 2, 2 if image_px >= 64 else 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)))
    elif wide := _WIDE_RESNET.fullmatch(name):
        depth, factor = int(wide[1]), int(wide[2])
        if depth < 10 or (depth - 4) % 6 or not 1 <= factor <= 32:
            raise UserError(f"Setting coreg.student={name!r}: the depth must be 6 n + 4, such as wide_resnet28_2.")
        blocks = (depth - 4) // 6
        net = PreActNet((16, 3, 1), tuple((16 * factor * 2**i, blocks, min(i + 1, 2)) for i in range(3)))
    else:
        raise UserError(f"Setting coreg.student={name!r} is no student: give {_NAMES}.")
    return net, net.width


def _timm(name: str, *, pretrained: bool) -> tuple[nn.Module, int]:
    """Any timm model without its classifier."""
    try:
        model: Any = timm.create_model(name.removeprefix("timm/"), pretrained=pretrained, num_classes=0)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"Setting coreg.student={name!r} cannot be made ({reason}): check the name with timm.list_models(), and "
            "that the hub can be reached when coreg.pretrained is set."
        ) from error
    return model, int(getattr(model, "head_hidden_size", None) or model.num_features)


@torch.no_grad()
def update_ema(copy: nn.Module, leader: nn.Module, momentum: float) -> None:
    """Moves a momentum copy: weights m a + (1 - m) b, running statistics as the leader has them (MoCo)."""
    torch._foreach_lerp_(list(copy.parameters()), list(leader.parameters()), 1 - momentum)
    for own, other in zip(copy.buffers(), leader.buffers(), strict=True):
        own.copy_(other)
