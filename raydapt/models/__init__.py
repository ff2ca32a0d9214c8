"""Models: the frozen CLIP and the prompts that are learned on top of it."""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HF_NAMES = {
    "transformers": ("AutoModel", "AutoTokenizer", "AutoConfig", "PretrainedConfig"),
    "transformers.modeling_outputs": (
        "BaseModelOutput",
        "BaseModelOutputWithPooling",
        "BaseModelOutputWithPoolingAndCrossAttentions",
    ),
}

for _name in ("torch.utils._pytree", "diffusers.quantizers.torchao"):  # they speak whenever torchao is imported
    logging.getLogger(_name).setLevel(logging.ERROR)


@contextmanager
def passed_over(*packages: str) -> Iterator[None]:
    """Hides packages from whoever imports them if they are there; they can be imported afterwards all the same."""
    hidden = [name for name in packages if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _import_open_clip() -> None:
    """Imports open_clip without transformers, and so without scikit-learn, pandas and half of SciPy.

    open_clip imports transformers for text towers of Hugging Face and for captions by CoCa: half of the time that
    every process needs to start. `lend_transformers` gives it to the towers that are made of it. Transformers itself
    imports scikit-learn for one rule of assisted text generation, and timm W&B for a log that is not written here.
    """
    with passed_over("sklearn", "transformers", "wandb"):
        importlib.import_module("open_clip")


def lend_transformers() -> None:
    """Gives open_clip's room for Hugging Face's text towers what it would have imported."""
    room = importlib.import_module("open_clip.hf_model")
    if getattr(room, "transformers", None) is not None:
        return
    for module, names in _HF_NAMES.items():
        found = importlib.import_module(module)
        vars(room).update({name: getattr(found, name) for name in names})
    vars(room)["transformers"] = importlib.import_module("transformers")


_import_open_clip()
