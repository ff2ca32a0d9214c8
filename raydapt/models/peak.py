"""The work of a model in floating-point operations, and what the device that it runs on could do in the same time.

A multiplication and an addition are two operations. What attention multiplies by itself is counted on GPUs alone, where
torch knows its kernels; of a ViT-B/32 it is a hundredth.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_TERA = 1e12
_PEAKS: tuple[tuple[frozenset[str], dict[str, float]], ...] = (
    (frozenset({"B200"}), {"bf16": 2250, "fp16": 2250, "tf32": 1100, "fp32": 75}),
    (frozenset({"H200"}), {"bf16": 989, "fp16": 989, "tf32": 494, "fp32": 67}),
    (frozenset({"H100", "PCIe"}), {"bf16": 756, "fp16": 756, "tf32": 378, "fp32": 51}),
    (frozenset({"H100", "NVL"}), {"bf16": 835, "fp16": 835, "tf32": 417, "fp32": 60}),
    (frozenset({"H100"}), {"bf16": 989, "fp16": 989, "tf32": 494, "fp32": 67}),
    (frozenset({"A100"}), {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}),
    (frozenset({"L40S"}), {"bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6}),
    (frozenset({"L4"}), {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3}),
    (frozenset({"A10"}), {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2}),
    (frozenset({"A10G"}), {"bf16": 70, "fp16": 70, "tf32": 35, "fp32": 35}),
    (frozenset({"V100"}), {"fp16": 125, "fp32": 15.7}),
    (frozenset({"T4"}), {"fp16": 65, "fp32": 8.1}),
)
"""Tera-operations a second by words of the device's name and arithmetic, dense, from the makers' data sheets."""


@dataclass
class Work:
    """What a model has done so far.

    Attributes:
        flop: Floating-point operations.
        peak_flop_per_s: What the device reaches at best; 0 where its data sheet is not known here.
    """

    flop: float = 0.0
    peak_flop_per_s: float = 0.0


def peak_flop_per_s(device_name: str, precision: str) -> float:
    """The best that a GPU can do, in operations a second; 0 for one that is not known.

    Args:
        device_name: As `torch.cuda.get_device_name` says it.
        precision: ``bf16``, ``fp16``, ``tf32`` or ``fp32``.
    """
    words = set(device_name.replace("-", " ").split())
    return next((peaks.get(precision, 0.0) * _TERA for name, peaks in _PEAKS if name <= words), 0.0)


def peak_of(device: torch.device, precision: str) -> float:
    """The same of a device of this machine."""
    return peak_flop_per_s(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else 0.0


@contextlib.contextmanager
def counted(work: Work) -> Iterator[None]:
    """Adds to `work` what torch computes within."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one kernel is none that torch counts
    try:
        with FlopCounterMode(display=False) as counter:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    work.flop += counter.get_total_flops()


class Clock:
    """Seconds and operations of a module's calls; the device is not waited for before somebody asks.

    Every call is taken for as large as the first one, which is made twice: counting takes other kernels, which round
    otherwise. Where torch has been asked to compile `forward` since, it does so before the first call's time begins.
    """

    def __init__(self, module: nn.Module, device: torch.device, precision: str) -> None:
        self._device, self._work = device, Work(peak_flop_per_s=peak_of(device, precision))
        self._seconds, self._calls, self._entered = 0.0, 0, 0.0
        self._begun: list[torch.cuda.Event] = []
        self._ended: list[torch.cuda.Event] = []
        self._eager = module.forward  # what torch compiles later is counted as it was before
        module.register_forward_pre_hook(self._enter, with_kwargs=True)
        module.register_forward_hook(self._leave)

    def read(self) -> tuple[float, Work]:
        """Seconds inside the module so far, and what it worked in them."""
        for begun, ended in zip(self._begun, self._ended, strict=True):
            ended.synchronize()
            self._seconds += begun.elapsed_time(ended) / 1000
        self._begun, self._ended = [], []
        return self._seconds, Work(self._work.flop * self._calls, self._work.peak_flop_per_s)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._calls:
            with counted(self._work):
                self._eager(*args, **kwargs)
            if module.forward != self._eager:
                module.forward(*args, **kwargs)
        if self._device.type == "cuda":
            self._begun.append(self._now())
        else:
            self._entered = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        if self._device.type == "cuda":
            self._ended.append(self._now())
        else:
            self._seconds += time.perf_counter() - self._entered
        self._calls += 1

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event
