"""Weights of other people's files, read without running anything that the file says.

A pickle may call any function. Here tensors and plain containers are rebuilt and nothing else: of safetensors by its
own reader, of torch's files with ``weights_only``, of OpenAI's TorchScript archives by going through their records.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raydapt.errors import UserError

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep beside the weights."""
_STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
             "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
             "BoolStorage": torch.bool, "ByteStorage": torch.uint8}  # fmt: skip
_FAULTS = (OSError, ValueError, KeyError, RuntimeError, EOFError, AttributeError, TypeError, pickle.UnpicklingError,
           zipfile.BadZipFile, SafetensorError)  # fmt: skip


def read_weights(path: Path, *, setting: str) -> dict[str, Tensor]:
    """The weights of a file by name: a state dict, a checkpoint that holds one, or a TorchScript archive.

    Raises:
        UserError: If the file is damaged, or holds objects that only running its code would rebuild.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if is_torchscript(path):
            return _read_torchscript(path)
        # What open_clip's checkpoints hold beside the weights; what torch warns of, it reads or refuses all the same.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{setting}: {str(path)!r} holds more than weights ({_what(error)}), and rebuilding that could run any "
            "code: save the state dict alone, best as .safetensors."
        ) from None
    except _FAULTS as error:
        raise UserError(
            f"{setting}: {str(path)!r} is no file of weights that can be read ({_what(error)}): fetch it again."
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{setting}: {str(path)!r} holds no weights by name: give a state dict.")
    weights = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    return {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in weights.items()}


def check_safetensors(path: Path, *, setting: str) -> None:
    """Reads the header of a safetensors file, so that a file that was fetched by half is said before anything starts.

    Raises:
        UserError: If the header is none, or the file is not as long as it says.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{setting}: {str(path)!r} cannot be read ({error.strerror}).") from None
    if start.startswith(b"version https://git-lfs") or (length >> 56 and size < 1024):
        raise UserError(f"{setting}: {str(path)!r} is a pointer of git-lfs, not the weights: run `git lfs pull`.")
    try:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{setting}: {str(path)!r} is no whole .safetensors file ({_what(error)}): fetch it again."
        ) from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path, *, setting: str) -> None:
    """Puts weights into an open_clip model, in any of the layouts that open_clip converts.

    Raises:
        UserError: If they belong to another architecture.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    own = model.state_dict()
    state = {name: value for name, value in weights.items() if name not in _NO_WEIGHTS}
    try:
        state = convert_state_dict(model, state)
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        for name in ("logit_scale", "logit_bias"):
            if name in state and name in own:
                state[name] = state[name].reshape(own[name].shape)
        if "logit_bias" in own:
            state.setdefault("logit_bias", torch.zeros_like(own["logit_bias"]))
        state.pop("text.transformer.embeddings.position_ids", None)
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
        model.load_state_dict(state)
    except (RuntimeError, AssertionError, KeyError, AttributeError, ValueError, TypeError, IndexError):
        raise UserError(f"{setting}: {str(path)!r} holds other weights ({_difference(own, state)}).") from None


def _difference(own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """How the weights of a file differ from those of the architecture, in a few words."""
    for name, value in own.items():
        if name in state and state[name].shape != value.shape:
            there, here = tuple(state[name].shape), tuple(value.shape)
            return f"{name} has the shape {there}, and the architecture that was named wants {here}"
    missing, more = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing:
        return f"{len(missing)} of {len(own)} are missing, such as {missing[0]}: name the architecture that they are of"
    return (
        f"{len(more)} have no place, such as {more[0]}: name the architecture that they are of" if more else "unknown"
    )


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, such as those that OpenAI published."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Module:
    """Stands for any class of a TorchScript archive: keeps its attributes, runs none of its code."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Records(pickle.Unpickler):
    """Rebuilds tensors and attributes; every other name is refused."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}/data.pkl"))
        self._archive, self._prefix = archive, prefix

    def find_class(self, module: str, name: str) -> Any:
        """The few that TorchScript's own records need."""
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "collections" and name == "OrderedDict":
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch.jit._pickle":  # tags on lists
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """The values of one storage."""
        _, dtype, key, _, _ = pid
        data = bytearray(self._archive.read(f"{self._prefix}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        prefix = next(name for name in archive.namelist() if name.endswith("/data.pkl")).rpartition("/")[0]
        root = _Records(archive, prefix).load()
    weights: dict[str, Tensor] = {}
    _collect(root, "", weights)
    return weights


def _collect(module: Any, prefix: str, weights: dict[str, Tensor]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            weights[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", weights)


def _what(error: Exception) -> str:
    """The fault in a few words; torch's own explanations are pages."""
    text = " ".join(str(error).split())
    for mark in ("Unsupported global: GLOBAL ", "Unsupported class "):
        if mark in text:
            return text.partition(mark)[2].split()[0].rstrip(".,")
    return text[:120] or type(error).__name__
