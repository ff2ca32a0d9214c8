"""Template ensemble: zero-shot classification with the class embeddings of all templates averaged."""

from __future__ import annotations

from collections.abc import Sequence

from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.models.clip import Clip


class Ensemble(ZeroShot):
    """The frozen CLIP against the normalised mean of each class's embeddings over all templates.

    Args:
        clip: The frozen model.
        class_names: C names.
        templates: Prompt wordings, all of which vote.
    """

    def __init__(self, clip: Clip, class_names: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(clip, clip.class_embeddings(class_names, templates))
