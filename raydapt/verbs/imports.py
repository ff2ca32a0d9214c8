"""The imports of a command line, before its work."""

import gc
import importlib

from raydapt.progress import said_if_slow


def import_models() -> None:
    """Imports what most verbs work with: seconds, minutes on a busy or cold disk, and so said.

    What imports make stays, so that the garbage collector is off meanwhile and never looks at it again: a sixth of the
    time.
    """
    gc.disable()
    try:
        with said_if_slow("importing torch and open_clip …"):
            importlib.import_module("raydapt.run.pipeline")
        gc.freeze()
    finally:
        gc.enable()
