"""Models: the frozen CLIP and the prompts that are learned on top of it."""

import importlib
import sys


def _import_open_clip() -> None:
    """Imports open_clip without scikit-learn.

    open_clip imports transformers, which imports scikit-learn (and with it pandas and half of SciPy) for one rule of
    assisted text generation: a quarter of the CPU time that every actor needs to start. Hidden during the import, it
    is passed over, and can be imported afterwards all the same.
    """
    if "sklearn" in sys.modules or "open_clip" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("open_clip")
    finally:
        del sys.modules["sklearn"]


_import_open_clip()
