"""What Co-Reg leaves to deploy: both students without their projectors.

Legend: B batch, C classes, S image side in px.
"""

import torch
from torch import Tensor, nn

from raydapt.methods.coreg.method import CoReg
from raydapt.models.clip import Clip
from raydapt.models.students import Student


class DeployedFeatureStudents(nn.Module):
    """Both students behind the image tower whose features they take: uint8 pixels [B, 3, S, S] to logits [B, C]."""

    def __init__(self, method: CoReg, clip: Clip) -> None:
        super().__init__()
        self.tower, self.method = clip, method

    def forward(self, pixel_B3SS: Tensor) -> Tensor:
        """The sum of both logits."""
        return self.method.logits(self.tower.encode_image(pixel_B3SS))


class DeployedStudents(nn.Module):
    """Both students of Co-Reg without their projectors: uint8 pixels [B, 3, S, S] to logits [B, C]."""

    mean_311: Tensor
    std_311: Tensor

    def __init__(self, method: CoReg) -> None:
        super().__init__()
        networks = []
        for student in method.students:
            assert isinstance(student, Student)
            networks.append(nn.Sequential(student.backbone, student.head))
        self.networks = nn.ModuleList(networks)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(method.augmentation, name)).view(3, 1, 1)
            self.register_buffer(f"{name}_311", values.to(next(self.parameters()).device))

    def forward(self, pixel_B3SS: Tensor) -> Tensor:
        """The sum of both logits."""
        image = (pixel_B3SS.to(torch.float32) / 255 - self.mean_311) / self.std_311
        logits_BC: Tensor = self.networks[0](image) + self.networks[1](image)
        return logits_BC
