"""The state of a training run as one safetensors file: no pickle, and whole or absent.

Legend: M images of a stream, C classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load, save
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from raydapt.methods.contract import PseudoLabels, Stream
from raydapt.methods.targets import Targets, sparse


@dataclass(frozen=True, kw_only=True)
class AcceptedRound:
    """The last round that the guard accepts as it is."""

    round_: int
    method: dict[str, Tensor]


@dataclass(kw_only=True)
class TrainState:
    """Where training stands. Written by the first worker, read by all of them."""

    round_: int = 0
    """1-based round in progress; 0 before the first."""
    step: int = 0
    """Optimiser steps done in the round."""
    finished: bool = False
    seconds: float = 0.0
    """Time spent in optimiser steps, over all attempts."""
    images: int = 0
    """Images that went through an optimiser step, over all attempts."""
    method: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)
    history: list[PseudoLabels] = field(default_factory=list)
    """What each round selected, for the report; with sparse targets."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """The log, a line about once an epoch, at the end of a round with its label-free scores under ``scores``; kept here
    so that a resumed run neither loses nor repeats one."""
    accepted: AcceptedRound | None = None
    """None where rounds are not judged, or none was accepted."""
    kept_round: int | None = None
    """Whose weights are the final ones, where they are not those of the last."""


class Checkpoints(Protocol):
    """Where `fit` keeps its state: a folder, or Ray Train's storage."""

    def load(self) -> bytes | None:
        """The latest checkpoint, None when there is none."""

    def save(self, data: bytes | None, metrics: Mapping[str, float]) -> None:
        """Keeps a checkpoint. Called on every worker; `data` is None on all but the first."""


def to_bytes(state: TrainState) -> bytes:
    """Serialises a state. Targets are stored sparse: most classes are no candidate of most images."""
    tensors: dict[str, Tensor] = {}
    tensors.update({f"method.{name}": tensor for name, tensor in state.method.items()})
    tensors.update({f"optimizer.{name}": tensor for name, tensor in state.optimizer.items()})
    accepted = state.accepted
    if accepted is not None:
        tensors.update({f"accepted.{name}": tensor for name, tensor in accepted.method.items()})
    streams: list[dict[str, Any]] = []
    for i, stream in enumerate(state.streams):
        tensors[f"stream.{i}.index"] = stream.index_M
        tensors.update(_sparse(f"stream.{i}", stream.target_MC))
        shape = list(stream.target_MC.shape)
        named = {"name": stream.name, "batch_size": stream.batch_size, "source": stream.source}
        streams.append(named | {"shape": shape})
    history: list[dict[str, Any]] = []
    for i, labels in enumerate(state.history):
        tensors[f"history.{i}.index"] = labels.index_M
        tensors[f"history.{i}.confidence"] = labels.confidence_M
        tensors[f"history.{i}.class"] = labels.class_M
        tensors.update(_sparse(f"history.{i}", labels.target_MC))
        tensors.update({f"history.{i}.guess.{name}": class_U for name, class_U in labels.guesses.items()})
        shape = list(labels.target_MC.shape)
        history.append({"shape": shape, "waiting": labels.waiting, "dropped": labels.dropped})
    header = {
        "round": state.round_,
        "step": state.step,
        "finished": state.finished,
        "seconds": state.seconds,
        "images": state.images,
        "streams": streams,
        "history": history,
        "lines": state.lines,
        "kept_round": state.kept_round,
        "accepted": None if accepted is None else {"round_": accepted.round_},
    }
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(whole, metadata={"state": json.dumps(header)})


def from_bytes(data: bytes) -> TrainState:
    """The inverse of `to_bytes`."""
    tensors = load(data)
    header = json.loads(_metadata(data)["state"])
    streams = [
        Stream(
            name=item["name"],
            index_M=tensors[f"stream.{i}.index"],
            target_MC=_sparse_targets(tensors, f"stream.{i}", item["shape"]),
            batch_size=item["batch_size"],
            source=item.get("source", "train"),
        )
        for i, item in enumerate(header["streams"])
    ]
    history = [
        PseudoLabels(
            index_M=tensors[f"history.{i}.index"],
            target_MC=_sparse_targets(tensors, f"history.{i}", item["shape"]),
            confidence_M=tensors[f"history.{i}.confidence"],
            class_M=tensors[f"history.{i}.class"],
            waiting=item["waiting"],
            dropped=item["dropped"],
            guesses=_below(tensors, f"history.{i}.guess."),
        )
        for i, item in enumerate(header["history"])
    ]
    accepted = header.get("accepted")  # absent in states of earlier releases
    return TrainState(
        round_=header["round"],
        step=header["step"],
        finished=header["finished"],
        seconds=header["seconds"],
        images=header["images"],
        method=_below(tensors, "method."),
        optimizer=_below(tensors, "optimizer."),
        streams=streams,
        history=history,
        lines=header["lines"],
        kept_round=header.get("kept_round"),
        accepted=None if accepted is None else AcceptedRound(**accepted, method=_below(tensors, "accepted.")),
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's buffers as flat names, ``<parameter number>.<buffer>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for number, buffers in state.items()
        for name, value in buffers.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts the buffers of `optimizer_tensors` back; the hyper-parameters stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sparse(prefix: str, target_MC: Targets) -> dict[str, Tensor]:
    sparse_MC = sparse(target_MC).tocoo()
    where_E2 = torch.from_numpy(np.stack(sparse_MC.coords, axis=1).astype(np.int32))
    return {f"{prefix}.where": where_E2, f"{prefix}.value": torch.from_numpy(sparse_MC.data)}


def _sparse_targets(tensors: Mapping[str, Tensor], prefix: str, shape: list[int]) -> csr_array:
    row_E, class_E = tensors[f"{prefix}.where"].numpy().T
    value_E = tensors[f"{prefix}.value"].to(torch.float32).numpy()
    return csr_array(coo_array((value_E, (row_E, class_E)), shape=tuple(shape)))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _metadata(data: bytes) -> dict[str, str]:
    """The string metadata of a safetensors file in memory (the library reads it from paths only)."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
