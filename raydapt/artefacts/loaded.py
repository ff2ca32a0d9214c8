"""Large arrays of artefacts, read once per process: who asks while another still holds one gets the same array.

A run, its training, its scores and its evaluation all read the features; nothing keeps them once nobody needs them.
Readers share memory, so none may write into what it gets.
"""

from collections.abc import Callable
from weakref import WeakValueDictionary

from torch import Tensor

from raydapt.store.artefact import Artefact

_LOADED: WeakValueDictionary[tuple[str, str, int, str], Tensor] = WeakValueDictionary()


def loaded(artefact: Artefact, name: str) -> Tensor | None:
    """The array of that name, if somebody in this process still holds it."""
    return _LOADED.get(_key(artefact, name))


def remember(artefact: Artefact, name: str, array: Tensor) -> Tensor:
    """Lets others find an array as long as somebody holds it; returns it."""
    _LOADED[_key(artefact, name)] = array
    return array


def load_once(artefact: Artefact, name: str, load: Callable[[], Tensor]) -> Tensor:
    """The array of that name, read only if nobody in this process holds it."""
    found = loaded(artefact, name)
    return remember(artefact, name, load()) if found is None else found


def _key(artefact: Artefact, name: str) -> tuple[str, str, int, str]:
    return artefact.folder.url, artefact.fingerprint, artefact.manifest.rows, name
