"""What a run leaves to deploy: one module from pixels to logits, its size and its speed.

Legend: B batch, C classes, D width of CLIP's space, S image side in px.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.errors import UserError
from raydapt.methods.contract import Method
from raydapt.methods.coreg.method import CoReg
from raydapt.methods.latteclip.method import LatteClip
from raydapt.models.clip import Clip
from raydapt.models.students import Student
from raydapt.models.vision_tower import extra_tokens

_BATCH, _LEAST_S = 64, 0.5


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


class DeployedClip(nn.Module):
    """CLIP's image tower, with a learned visual prompt if there is one, against class embeddings.

    Args:
        clip: The model.
        class_CD: Class embeddings.
        prompt_LD: Visual prompt, or None.
    """

    class_CD: Tensor
    mean_311: Tensor
    std_311: Tensor

    def __init__(self, clip: Clip, class_CD: Tensor, prompt_LD: Tensor | None = None) -> None:
        super().__init__()
        self.visual, self.scale = clip.model.visual, clip.logit_scale
        buffers = {"class_CD": class_CD, "mean_311": clip.mean_311, "std_311": clip.std_311}
        for name, value in buffers.items():
            self.register_buffer(name, value.detach().clone())
        self.prompt_LD = None if prompt_LD is None else nn.Parameter(prompt_LD.detach().clone())

    def forward(self, pixel_B3SS: Tensor) -> Tensor:
        """Scaled cosines [B, C]."""
        image = (pixel_B3SS.to(torch.float32) / 255 - self.mean_311) / self.std_311
        if self.prompt_LD is None:
            feature_BD = self.visual(image)
        else:
            with extra_tokens(self.visual, self.prompt_LD):
                feature_BD = self.visual(image)
        return self.scale * F.normalize(feature_BD, dim=-1) @ self.class_CD.T


def deployed(method: Method, clip: Clip) -> nn.Module:
    """The module that answers as the method does, in evaluation mode.

    Raises:
        UserError: For a method that is more than an image encoder with class embeddings.
    """
    if isinstance(method, CoReg):
        return DeployedStudents(method).eval()
    prompted = getattr(method, "prompted", None)
    with torch.no_grad():
        if isinstance(method, LatteClip):
            prompt_LD = None if method.visual_prompt is None else method.visual_prompt.prompt_LD
            model = clip if method.towers is None else method.towers.plain()
            module = DeployedClip(model, method.class_embeddings(), prompt_LD)
            module.scale = float(method.scale)
            return module.eval()
        if method.reads == "pixels" and prompted is not None and prompted.visual is not None:
            prompt_LD = prompted.visual.prompt_LD
            if prompted.joint is not None:
                _, prompt_LD = prompted.joint(prompted.text.context_LD, prompt_LD)
            return DeployedClip(clip, prompted.class_embeddings(), prompt_LD).eval()
        return DeployedClip(clip, _class_embeddings(method, clip)).eval()


def _class_embeddings(method: Method, clip: Clip) -> Tensor:
    """Class embeddings [C, D] of a method whose logits are linear in the image feature, found by asking it."""
    if method.reads == "features":
        unit_DD = torch.eye(clip.embed_dim, device=clip.device)
        logits_DC = method.eval().logits(unit_DD)
        if torch.allclose(method.logits(-2 * unit_DD), -2 * logits_DC, rtol=1e-4, atol=1e-4):
            return logits_DC.T / clip.logit_scale
    raise UserError(
        f"Method {type(method).__name__} is more than an image encoder with class embeddings, so that it cannot be "
        "exported as one: use 'raydapt predict', or export another run."
    )


def size_and_speed(model: nn.Module, side_px: int, device: torch.device) -> dict[str, Any]:
    """Parameters, bytes as float32, and images/s from uint8 pixels in batches of 64 on the device.

    The speed is that of this machine at this moment: it says something beside another one's of the same run.
    """
    parameters = sum(p.numel() for p in model.parameters())
    pixel = torch.randint(0, 256, (_BATCH, 3, side_px, side_px), dtype=torch.uint8, device=device)
    with torch.inference_mode():
        model(pixel)
        images, started = 0, time.perf_counter()
        while time.perf_counter() - started < _LEAST_S:
            float(model(pixel)[0, 0])  # waits for the device
            images += _BATCH
    seconds = time.perf_counter() - started
    return {"parameters": parameters, "bytes": 4 * parameters, "images_per_s": images / seconds}
