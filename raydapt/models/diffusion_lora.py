"""Low-rank adaptation of a pipeline's attention: adapters, their loss, and their file in diffusers' layout.

Legend: N images, B batch, L tokens, D width of the text states, h/w sides of the latent grid.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.errors import UserError
from raydapt.models.hub import fetch_file, split_revision
from raydapt.models.weight_files import read_weights

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
_DOWN = tuple(
    f"{layer}.weight" for layer in (".lora_A", ".lora.down", ".lora_linear_layer.down", ".lora_down", "_lora.down")
)
_ALPHA = ".alpha"
_HUB_FILE = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?(/.+\.safetensors)?")
_OTHER_KINDS = {"dora_scale": "DoRA", ".hada_w": "LoHa", ".lokr_w": "LoKr", ".lora_mid": "LoCon (with a third matrix)"}
"""What a part of a name tells of weights that are more than two matrices; diffusers drops the scale of DoRA."""
# Which parts have weights is counted here; diffusers warns of each part that a file leaves as it is.
for _file in ("lora_base", "peft"):
    logging.getLogger(f"diffusers.loaders.{_file}").setLevel(logging.ERROR)
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")


def add_adapters(pipeline: StableDiffusionPipeline, *, rank: int, text_encoder: bool) -> None:
    """Puts untrained adapters into the UNet's attention (and the text encoder's), drawn from torch's global seed."""
    pipeline.unet.add_adapter(_config(rank, UNET_TARGETS))
    if text_encoder:
        pipeline.text_encoder.add_adapter(_config(rank, TEXT_TARGETS))


def _config(rank: int, targets: list[str]) -> LoraConfig:
    """As in the fine-tuning script of diffusers: alpha equal to the rank, Gaussian start."""
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)


class DenoisingWithAdapters(nn.Module):
    """The loss of LoRA fine-tuning: the squared error of what the pipeline's scheduler predicts (DDPM, eq. 14).

    Attributes:
        times: Noise levels of the pipeline's schedule.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, *, text_encoder: bool) -> None:
        super().__init__()
        self.unet: nn.Module = pipeline.unet
        self.text_encoder: nn.Module | None = pipeline.text_encoder if text_encoder else None
        self._frozen_text = (pipeline.text_encoder,)  # a tuple hides it from parameters()
        self._schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.times = int(self._schedule.config.num_train_timesteps)

    def learned(self) -> dict[str, nn.Parameter]:
        """The adapters' weights by name."""
        return {name: one for name, one in self.named_parameters() if one.requires_grad}

    def forward(self, clean_BChw: Tensor, noise_BChw: Tensor, time_B: Tensor, token_BL: Tensor) -> Tensor:
        """The mean loss of latents under the given noise, times and tokens of the captions."""
        with torch.set_grad_enabled(self.text_encoder is not None and torch.is_grad_enabled()):
            state_BLD = self._frozen_text[0](token_BL)[0]
        noisy = self._schedule.add_noise(clean_BChw, noise_BChw, time_B)
        target = noise_BChw
        if self._schedule.config.prediction_type == "v_prediction":
            target = self._schedule.get_velocity(clean_BChw, noise_BChw, time_B)
        predicted = self.unet(noisy, time_B, encoder_hidden_states=state_BLD).sample
        return F.mse_loss(predicted.float(), target.float())


@torch.no_grad()
def encode_latents(pipeline: StableDiffusionPipeline, pixel_N3SS: Tensor, *, batch: int = 8) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents of uint8 pixels, scaled for the UNet, on the CPU: two of [N, C, h, w]."""
    means, deviations, vae = [], [], pipeline.vae
    scale = float(vae.config.scaling_factor)
    for pixel_B3SS in torch.split(pixel_N3SS, batch):
        posterior = vae.encode(pixel_B3SS.to(vae.device, vae.dtype) / 127.5 - 1).latent_dist
        means.append((posterior.mean * scale).float().cpu())
        deviations.append((posterior.std * scale).float().cpu())
    return torch.cat(means), torch.cat(deviations)


def adapter_weights(pipeline: StableDiffusionPipeline, *, text_encoder: bool) -> dict[str, Tensor]:
    """The adapters in the layout that `StableDiffusionPipeline.load_lora_weights` reads."""
    parts = {"unet": pipeline.unet} | ({"text_encoder": pipeline.text_encoder} if text_encoder else {})
    return {
        f"{part}.{name}": tensor.detach().float().cpu().contiguous()
        for part, model in parts.items()
        for name, tensor in convert_state_dict_to_diffusers(get_peft_model_state_dict(model)).items()
    }


def lora_bytes(weights: dict[str, Tensor]) -> bytes:
    """The weights as a safetensors file."""
    data: bytes = save(weights, metadata={"format": "pt"})
    return data


def read_lora(folder: str, *, rank: int) -> bytes:
    """The LoRA file of a folder (`pytorch_lora_weights.safetensors`), the file itself, or one of the hub.

    Raises:
        UserError: When it is not there, is none, is of a kind that is not read here, or has another rank than the
            settings say.
    """
    path = _lora_file(folder)
    try:
        if path.suffix in (".bin", ".pt"):
            data = bytes(save(read_weights(path, setting=f"Setting synthesis.lora={folder!r}")))
        else:
            data = path.read_bytes()
        weights = load(data)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Setting synthesis.lora={folder!r} cannot be read ({error}): give a folder that holds {WEIGHTS_FILE}."
        ) from None
    if other := next((kind for part, kind in _OTHER_KINDS.items() if any(part in name for name in weights)), None):
        raise UserError(
            f"Setting synthesis.lora={folder!r} holds weights of {other}, which are not read here: give plain "
            "LoRA weights."
        )
    ranks = {int(tensor.shape[0]) for name, tensor in weights.items() if name.endswith(_DOWN)}
    if not ranks:
        raise UserError(f"Setting synthesis.lora={folder!r} holds no LoRA weights: give a folder with {WEIGHTS_FILE}.")
    if len(ranks) == 1 and ranks != {rank}:  # files of several ranks are used as they are
        raise UserError(
            f"Setting synthesis.lora={folder!r} holds matrices of rank {ranks.pop()}, but lora.rank={rank}: set "
            "lora.rank to theirs, or give other weights."
        )
    return data


def _lora_file(name: str) -> Path:
    """The file that a name stands for; of a folder the one that diffusers writes, else the only one there is."""
    path = Path(name).expanduser()
    if path.is_dir():
        others = sorted(path.glob("*.safetensors"))
        own = path / WEIGHTS_FILE
        return others[0] if not own.is_file() and len(others) == 1 else own
    if not path.exists() and _HUB_FILE.fullmatch(name):
        repository, revision = split_revision("/".join(name.split("/")[:2]))
        file = "/".join(name.split("/")[2:]) or WEIGHTS_FILE
        return fetch_file(repository, file, revision=revision) or path
    return path


def apply_lora(pipeline: Any, data: bytes) -> None:
    """Adds LoRA weights to the pipeline's own, so that it is as fast as without.

    Args:
        pipeline: Changed in place.
        data: A safetensors file in diffusers' layout.

    Raises:
        UserError: When they belong to another model.
    """
    with TemporaryDirectory() as folder:  # diffusers reads what the header says, such as alpha, from a file alone
        (Path(folder) / WEIGHTS_FILE).write_bytes(_with_alpha_in_weights(data))
        file = {"weight_name": WEIGHTS_FILE, "local_files_only": True}
        if not isinstance(pipeline, StableDiffusionPipeline):
            _fuse(pipeline, folder, data, file)
            return
        try:
            weights, _ = pipeline.lora_state_dict(folder, unet_config=pipeline.unet.config, **file)
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(
                f"The LoRA weights are of no layout that diffusers reads ({' '.join(str(error).split())[:200]}): give "
                "others to synthesis.lora."
            ) from None
        missing = _without_a_place(pipeline, weights)
        if missing:
            raise UserError(
                f"The LoRA weights do not fit the pipeline ({missing} of {len(weights)} matrices have no place in it): "
                "they belong to another model; give synthesis.lora and synthesis.pipeline that go together."
            )
        pipeline.load_lora_weights(folder, **file)
    pipeline.fuse_lora(
        components=[part for part in ("unet", "text_encoder") if any(k.startswith(part) for k in weights)]
    )
    pipeline.unload_lora_weights()


def _fuse(pipeline: Any, folder: str, data: bytes, file: dict[str, Any]) -> None:
    """Lets a pipeline of another kind load and keep the weights, and counts whether it took all of them."""
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"Setting synthesis.lora: diffusers reads no LoRA weights for a {kind}: leave it out.")
    try:
        pipeline.load_lora_weights(folder, **file)
        parts = {name: getattr(pipeline, name) for name in pipeline.get_list_adapters()}
    except (ValueError, KeyError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"The LoRA weights do not fit the pipeline, a {kind} ({reason}): they belong to another model; give "
            "synthesis.lora and synthesis.pipeline that go together."
        ) from None
    given = sum(name.endswith(_DOWN) for name in load(data))
    taken = sum(name.endswith(".lora_A") for part in parts.values() for name, _ in part.named_modules())
    if taken < given:
        raise UserError(
            f"The LoRA weights do not fit the pipeline, a {kind} ({given - taken} of {given} layers have no place in "
            "it): they belong to another model; give synthesis.lora and synthesis.pipeline that go together."
        )
    pipeline.fuse_lora(components=list(parts))
    pipeline.unload_lora_weights()


def _with_alpha_in_weights(data: bytes) -> bytes:
    """The file with ``.alpha`` tensors beside diffusers' names multiplied into the weights: B A alpha / rank.

    diffusers knows them in kohya's layout alone, which stays as it is, like files that say alpha in their header.
    """
    weights = load(data)
    alphas = {name.removesuffix(_ALPHA): float(tensor) for name, tensor in weights.items() if name.endswith(_ALPHA)}
    if not alphas or all(name.startswith(_KOHYA) for name in weights):
        return data
    kept = {}
    for name, tensor in weights.items():
        layer = name.split(".lora")[0]
        if name.endswith(_DOWN) and layer in alphas:
            tensor = (tensor.to(torch.float32) * (alphas[layer] / tensor.shape[0])).to(tensor.dtype)
        if not name.endswith(_ALPHA):
            kept[name] = tensor
    return bytes(save(kept))


def _without_a_place(pipeline: StableDiffusionPipeline, weights: dict[str, Tensor]) -> int:
    """How many matrices name no layer of the pipeline, or one of another width."""
    modules: dict[str, Any] = {}
    for part in ("unet", "text_encoder"):
        modules |= {f"{part}.{name}": module for name, module in getattr(pipeline, part).named_modules()}
    count = 0
    for name, tensor in weights.items():
        layer = re.split(r"[._]lora", name)[0].replace(".processor.", ".")  # kohya's names come back with "processor"
        layer += ".0" if layer.endswith(".to_out") else ""
        module = modules.get(layer) or modules.get(layer.replace("text_encoder.text_model.", "text_encoder."))
        weight = getattr(module, "weight", None)
        side = 1 if name.endswith(_DOWN) else 0
        inner = tensor.shape[1] if side else tensor.shape[0]
        count += weight is None or int(weight.shape[side]) != int(inner)
    return count
