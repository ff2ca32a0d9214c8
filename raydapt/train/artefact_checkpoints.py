"""Checkpoints of a training whose result is an artefact."""

from typing import Any

from raydapt.store.artefact import Artefact

CHECKPOINT_FILE = "checkpoint.safetensors"


class ArtefactCheckpoints:
    """The latest checkpoint as a file beside the artefact's parts."""

    def __init__(self, artefact: Artefact) -> None:
        self._folder = artefact.folder

    def load(self) -> bytes | None:
        """The file's bytes, None before the first checkpoint."""
        return self._folder.read(CHECKPOINT_FILE) if self._folder.exists(CHECKPOINT_FILE) else None

    def save(self, data: bytes | None, metrics: Any) -> None:
        """Replaces the file as a whole."""
        if data is not None:
            self._folder.write(CHECKPOINT_FILE, data)
