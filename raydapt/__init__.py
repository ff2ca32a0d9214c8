"""raydapt adapts CLIP-like vision-language models to unlabelled image domains, on Ray.

The verbs of the command line are functions here. What is heavy is imported when one of them is first called.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydapt.errors import UserError
    from raydapt.verbs.python import compare, evaluate, export, load, predict, run, tune
    from raydapt.verbs.python_stages import caption, describe, features, synthesize
    from raydapt.verbs.result import FinishedResult, FinishedSweep

__version__ = "0.1.0"
__all__ = [
    "FinishedResult",
    "FinishedSweep",
    "UserError",
    "__version__",
    "caption",
    "compare",
    "describe",
    "evaluate",
    "export",
    "features",
    "load",
    "predict",
    "run",
    "synthesize",
    "tune",
]
_ELSEWHERE = {
    "UserError": "raydapt.errors",
    "FinishedResult": "raydapt.verbs.result",
    "FinishedSweep": "raydapt.verbs.result",
    **dict.fromkeys(("caption", "describe", "features", "synthesize"), "raydapt.verbs.python_stages"),
}


class _Package(ModuleType):
    """This module. Importing the rooms ``raydapt.run`` and ``raydapt.tune`` would put them in the functions' places."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """A public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_ELSEWHERE.get(name, "raydapt.verbs.python")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, whether they are imported already or not."""
    return sorted({*globals(), *__all__})
