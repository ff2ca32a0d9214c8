"""Models: the frozen CLIP and the prompts that are learned on top of it."""

import importlib
import sys

_SLOW = ("sklearn", "transformers")
_HF_NAMES = {
    "transformers": ("AutoModel", "AutoTokenizer", "AutoConfig", "PretrainedConfig"),
    "transformers.modeling_outputs": (
        "BaseModelOutput",
        "BaseModelOutputWithPooling",
        "BaseModelOutputWithPoolingAndCrossAttentions",
    ),
}


def _import_open_clip() -> None:
    """Imports open_clip without transformers, and so without scikit-learn, pandas and half of SciPy.

    open_clip imports transformers for text towers of Hugging Face and for captions by CoCa: half of the time that
    every process needs to start. Hidden during the import, it is passed over, and can be imported afterwards all the
    same; `lend_transformers` gives it to the towers that are made of it.
    """
    if "open_clip" in sys.modules:
        return
    hidden = [name for name in _SLOW if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        importlib.import_module("open_clip")
    finally:
        for name in hidden:
            del sys.modules[name]


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
