"""A frozen encoder on its device: arithmetic, layout in memory, and batches that are copied while the device computes.

Legend: N images of a part, M those of them that are encoded, B batch, D width of the feature, S side in px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raydapt.errors import UserError
from raydapt.models.compiling import compiled, in_batches_of
from raydapt.models.peak import Work, counted, peak_of
from raydapt.settings.groups import Precision

Pixels = npt.NDArray[np.uint8] | Tensor
"""uint8 pixels of a part [N, 3, S, S]: read from the store or decoded by others, or on the device already."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ImageEncoder(Protocol):
    """What an actor needs of a model."""

    identity: str
    embed_dim: int
    model: Any

    def encode_image(self, pixel_B3SS: Tensor, /) -> Tensor:
        """L2-normalised float32 features [B, D] of uint8 pixels."""


def set_arithmetic(precision: Precision, device: torch.device) -> None:
    """Lets this process multiply float32 numbers as ``features.precision`` says.

    Raises:
        UserError: Where TF32 is wanted and there is no GPU, which alone has it.
    """
    tf32 = precision == "tf32"
    if tf32 and device.type == "cpu":
        raise UserError("Setting features.precision=tf32 needs a GPU for every actor: set it to fp32.")
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32  # of convolutions; torch allows it by itself


@dataclass(frozen=True, kw_only=True)
class Inference:
    """An encoder as a device runs it."""

    encoder: ImageEncoder
    """On `device`."""
    device: torch.device
    precision: Precision = "fp32"
    channels_last: bool = False
    """Whether pixels reach the encoder with their channels beside each other."""
    compiled: Callable[[Tensor], Tensor] | None = None
    """What takes the place of the encoder's `encode_image` where torch compiles it."""
    work: Work = field(default_factory=Work)
    """What it has worked so far."""

    _image_flop: list[float] = field(default_factory=list)  # of one image, once it is known

    @classmethod
    def of(
        cls, encoder: ImageEncoder, device: torch.device, precision: Precision, *, compiled_size: int = 0
    ) -> Inference:
        """Lays a tower of convolutions out channels-last on a GPU, whose matrix units read it so.

        Args:
            encoder: On `device`.
            device: Of both.
            precision: See ``features.precision``.
            compiled_size: Images of a batch that torch compiles the encoder for; 0: it does not.
        """
        tower = getattr(encoder.model, "visual", encoder.model)
        channels_last = device.type == "cuda" and is_convolutional(tower)
        if channels_last:
            tower.to(memory_format=torch.channels_last)
        work = Work(peak_flop_per_s=peak_of(device, precision))
        fast = None
        if compiled_size:
            fast = in_batches_of(compiled_size, compiled(encoder.encode_image, setting="features.compile"))
        return cls(
            encoder=encoder,
            device=device,
            precision=precision,
            channels_last=channels_last,
            compiled=fast,
            work=work,
        )

    def encode(self, pixel_B3SS: Tensor) -> Tensor:
        """L2-normalised float32 features [B, D] of uint8 pixels, both on the device."""
        dtype = _AUTOCAST.get(self.precision)
        if self.channels_last:
            pixel_B3SS = pixel_B3SS.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            if not self._image_flop and len(pixel_B3SS):
                one = Work()
                with counted(one):
                    self.encoder.encode_image(pixel_B3SS[:1])
                self._image_flop.append(one.flop)
            self.work.flop += sum(self._image_flop) * len(pixel_B3SS)
            return (self.compiled or self.encoder.encode_image)(pixel_B3SS).float()

    def encode_chosen(
        self, pixel_N3SS: Pixels, chosen_M: npt.NDArray[np.int64], batch_size: int
    ) -> npt.NDArray[np.float32]:
        """Features [M, D] of the chosen images; the device is waited for once, at the end."""
        parts = [self.encode(pixel_B3SS) for pixel_B3SS in self.batches(pixel_N3SS, chosen_M, batch_size)]
        if not parts:
            return np.zeros((0, self.encoder.embed_dim), dtype=np.float32)
        feature_MD: npt.NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        self.require_finite(feature_MD)
        return feature_MD

    def batches(self, pixel_N3SS: Pixels, chosen_M: npt.NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        """Batches of the chosen images on the device, in their order.

        Two buffers take turns, page-locked where there is a GPU: while it copies and computes one batch, the processor
        gathers the next. A batch is valid until the one after the next is asked for.
        """
        if isinstance(pixel_N3SS, Tensor):
            for start in range(0, len(chosen_M), batch_size):
                yield pixel_N3SS[torch.from_numpy(chosen_M[start : start + batch_size]).to(self.device)]
            return
        on_gpu, size = self.device.type == "cuda", min(batch_size, len(chosen_M))
        shape = (size, *pixel_N3SS.shape[1:])
        buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
        copied: list[torch.cuda.Event | None] = [None, None]
        for turn, start in enumerate(range(0, len(chosen_M), max(1, size))):
            index_B, slot = chosen_M[start : start + size], turn % 2
            buffer_B3SS, before = buffers[slot][: len(index_B)], copied[slot]
            if before is not None:
                before.synchronize()  # what this buffer held may still be on its way
            np.take(pixel_N3SS, index_B, axis=0, out=buffer_B3SS.numpy(), mode="clip")  # "raise" would copy once more
            pixel_B3SS = buffer_B3SS.to(self.device, non_blocking=True)
            if on_gpu:
                copied[slot] = torch.cuda.current_stream(self.device).record_event()
            yield pixel_B3SS

    def require_finite(self, feature_MD: npt.NDArray[np.float32]) -> None:
        """Refuses features that a low precision has made overflow.

        Raises:
            UserError: See above.
        """
        if self.precision in _AUTOCAST and not np.isfinite(feature_MD).all():
            raise UserError(
                f"Setting features.precision={self.precision} makes features that are no finite numbers with this "
                "model: set it to fp32, or from fp16 to bf16, which overflows at larger numbers."
            )


def is_convolutional(tower: nn.Module) -> bool:
    """Whether a tower convolves more than its patches: one convolution alone cuts the patches of a transformer."""
    return sum(isinstance(module, nn.Conv2d) for module in tower.modules()) > 1
