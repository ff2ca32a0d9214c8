"""What a run leaves to deploy where CLIP's image tower answers: one module from pixels to logits; its size and speed.

Legend: B batch, C classes, D width of CLIP's space, L prompt tokens, S image side in px.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.models.clip import Clip
from raydapt.models.vision_tower import extra_tokens

_BATCH, _LEAST_S = 64, 0.5


class DeployedClip(nn.Module):
    """CLIP's image tower, with a learned visual prompt if there is one, against class embeddings.

    Args:
        clip: The model.
        class_CD: Class embeddings.
        prompt_LD: Visual prompt, or None.
        bias_C: Added to the scaled cosines, or None.
    """

    class_CD: Tensor
    bias_C: Tensor
    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self, clip: Clip, class_CD: Tensor, prompt_LD: Tensor | None = None, bias_C: Tensor | None = None
    ) -> None:
        super().__init__()
        self.visual, self.scale = clip.model.visual, clip.logit_scale
        bias_C = class_CD.new_zeros(len(class_CD)) if bias_C is None else bias_C
        buffers = {"class_CD": class_CD, "bias_C": bias_C, "mean_311": clip.mean_311, "std_311": clip.std_311}
        for name, value in buffers.items():
            self.register_buffer(name, value.detach().clone())
        self.prompt_LD = None if prompt_LD is None else nn.Parameter(prompt_LD.detach().clone())

    def forward(self, pixel_B3SS: Tensor) -> Tensor:
        """Scaled cosines and the bias [B, C]."""
        image = (pixel_B3SS.to(torch.float32) / 255 - self.mean_311) / self.std_311
        if self.prompt_LD is None:
            answer: Any = self.visual(image)
        else:
            with extra_tokens(self.visual, self.prompt_LD):
                answer = self.visual(image)
        feature_BD: Tensor = answer[0] if isinstance(answer, tuple) else answer  # CoCa's also gives its tokens
        return self.scale * F.normalize(feature_BD, dim=-1) @ self.class_CD.T + self.bias_C


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
